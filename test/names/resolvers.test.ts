/**
 * Other programs' resolvers ask for mesh names: command-line clients, C libraries, Go, Java, and local caches in front of
 * a server that is not there. What is missing on the machine is left out, and said.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { NamesStatus } from "../../src/names/status.ts";
import { AgentLab, KMESH, missing, SERVICE, shop, UPSTREAMS } from "../e2e/agent-lab.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess, placed, type RunResult, run } from "../lab/process.ts";

const why = missing();
if (why) console.warn(`skipped: resolvers: ${why}`);

setDefaultTimeout(60_000);

const HOST = "shop.demo.svc.cluster.local";
/** More addresses than fit into any answer. */
const MANY = "many.demo.internal";
const ADDRESSES = Array.from({ length: 100 }, (_, i) => `10.97.0.${i + 1}`);
const SERVER = "10.77.0.2";

/** Tests of `tool`, which is a path, are left out where it is missing. */
function testWith(tool: string, name: string, body: () => Promise<void>): void {
  if (!existsSync(tool)) console.warn(`skipped: ${name}: ${tool} is missing`);
  test.skipIf(!existsSync(tool))(name, body);
}

describe.skipIf(why !== undefined)("resolvers of other programs", () => {
  let lab: AgentLab;
  let beyond: NetworkNamespace;
  let agent: OwnedProcess;
  let config: string;

  /** Runs a shell command in the lab's namespace, with a name server of its own. */
  const ask = (command: string, server = SERVER, enrolled = true): Promise<RunResult> => {
    const file = join(lab.folder, `resolv-${server}`);
    writeFileSync(file, `nameserver ${server}\noptions timeout:1 attempts:1\n`);
    return run(["unshare", "-m", "sh", "-c", `mount --bind ${file} /etc/resolv.conf && ${command}`], {
      netns: lab.namespace.path,
      ...(enrolled ? { cgroup: lab.apps } : {}),
      timeoutMs: 30_000,
    });
  };
  const output = async (command: string, server?: string, enrolled?: boolean): Promise<string> =>
    (await ask(command, server, enrolled)).stdout.trim();
  const built = async (name: string, source: string, command: (file: string, out: string) => string[]) => {
    const folder = join(lab.folder, name.replace(".", "-"));
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, name), source);
    const out = join(folder, "out");
    const { code, stderr } = await run(command(join(folder, name), out), { timeoutMs: 50_000, cwd: folder });
    if (code !== 0) throw new Error(stderr);
    return out;
  };

  const names = async (): Promise<NamesStatus | undefined> => (await lab.toldStatus()).names;

  /** A real name server where the others find none; it knows these names, as "NAME=ADDRESS,ADDRESS", and no other. */
  const server = async (...known: string[]): Promise<RunningClient> => {
    const script = join(import.meta.dirname, "name-server.py");
    const running = new RunningClient(placed(["python3", script, SERVER, ...known], { netns: beyond.path }));
    expect(await running.line()).toBe("ready");
    return running;
  };

  beforeAll(async () => {
    const endpoints = [{ address: UPSTREAMS.a, port: 8080 }];
    const many = { host: MANY, addresses: ADDRESSES, port: 80, endpoints };
    lab = await AgentLab.create({ services: [...shop({ v1: 50, v2: 50 }).services, many] });
    config = join(lab.folder, "config.yaml");
    writeFileSync(config, "dns: auto\n");
    // The agent reads the machine's resolv.conf: here it names a resolver of this machine.
    const resolvConf = join(lab.folder, "resolv-agent");
    writeFileSync(resolvConf, "nameserver 127.0.0.1\n");
    const start = join(lab.folder, "kmesh-with-resolver");
    writeFileSync(
      start,
      `#!/bin/sh\nexec unshare -m sh -c 'mount --bind ${resolvConf} /etc/resolv.conf && exec ${KMESH} "$@"' kmesh "$@"\n`,
      { mode: 0o755 },
    );
    lab.program = [start];
    beyond = await NetworkNamespace.create("far");
    await lab.namespace.connect(beyond, ["10.77.0.1/24"], [`${SERVER}/24`]);
    agent = await lab.liveAgent(`--config=${config}`);
    await eventually("names are live", async () => ((await names())?.entries ?? 0) > 0);
  }, 60_000);
  afterAll(async () => {
    await beyond?.remove();
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  testWith(
    "/usr/bin/dig",
    "dig: flags, EDNS, DO, letter case, types, reverse, and TCP, which passes",
    async () => {
      const all = await output(`dig ${HOST} A`);
      expect(all).toMatch(/flags: qr aa rd ra; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 1/);
      expect(all).toMatch(/status: NOERROR/);
      expect(all).toMatch(/EDNS: version: 0, flags:; udp: 1232/);
      expect(all).not.toMatch(/malformed|extra bytes/i);
      expect(await output("dig +short sHoP.dEmo.SVC.cluster.local A")).toBe(SERVICE);
      expect(await output(`dig +noedns ${HOST} A`)).toMatch(
        /flags: qr aa rd ra; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 0/,
      );
      expect(await output(`dig +dnssec +cd ${HOST} A`)).toMatch(
        /flags: qr aa rd ra cd;[\s\S]*EDNS: version: 0, flags: do;/,
      );
      for (const type of ["AAAA", "MX", "HTTPS", "SVCB", "TXT"])
        expect(await output(`dig ${HOST} ${type}`)).toMatch(/status: NOERROR[\s\S]*ANSWER: 0/);
      expect(await output(`dig +short -x ${SERVICE}`)).toBe(`${HOST}.`);
      expect(await output(`dig +tcp +time=1 +tries=1 ${HOST}`)).toMatch(
        /no servers could be reached|refused/,
      );
      expect(await output("dig +time=1 +tries=1 example.com A")).toMatch(
        /no servers could be reached|timed out/,
      );
    },
  );

  testWith(
    "/usr/bin/dig",
    "more addresses than fit: every client gets some; with dns-truncate it asks by TCP, where the name has to be known",
    async () => {
      const counts = async () => ({
        dig: (await output(`dig +short ${MANY} A`)).split("\n").length,
        plain: (await output(`dig +short +noedns ${MANY} A`)).split("\n").length,
        libc: new Set((await output(`getent ahostsv4 ${MANY}`)).match(/^[0-9.]+/gm)).size,
        node: existsSync("/usr/bin/node")
          ? Number(
              await output(
                `node -e 'require("dns").resolve4("${MANY}", (e, a) => console.log(e ? 0 : a.length))'`,
              ),
            )
          : undefined,
        go: existsSync(go)
          ? ((await output(`${await goBinary()} ${MANY}`)).match(/10\.97\.0\./g)?.length ?? 0)
          : undefined,
      });
      const some = await counts();
      /** For Node and Go where they are. */
      const there = (node: number, ofGo: number) => ({
        node: some.node === undefined ? undefined : node,
        go: some.go === undefined ? undefined : ofGo,
      });
      // Newer releases of Node use EDNS(0).
      expect(some).toEqual({ dig: 74, plain: 29, libc: 29, ...there(some.node === 29 ? 29 : 74, 74) });
      expect((await lab.kmesh("resolve", MANY, "A")).stdout).toContain(
        `(entry ${MANY}; 26 more do not fit, each answer has others)`,
      );
      writeFileSync(config, "dns-truncate: true\n");
      agent.signal("SIGHUP");
      await eventually("answers are truncated", async () =>
        (await output(`dig +ignore ${MANY} A`)).includes("flags: qr aa tc rd ra"),
      );
      expect(await output(`dig +ignore ${HOST} A`)).toContain("flags: qr aa rd ra");
      const stranger = await server();
      try {
        expect(await output(`dig ${MANY} A`)).toContain("status: NXDOMAIN");
        expect(await counts()).toEqual({ dig: 1, plain: 1, libc: 0, ...there(0, 0) });
      } finally {
        stranger.kill();
      }
      const knows = await server(`${MANY}=${ADDRESSES}`);
      try {
        expect(await counts()).toEqual({ dig: 100, plain: 100, libc: 100, ...there(100, 100) });
      } finally {
        knows.kill();
      }
      writeFileSync(config, "dns: auto\n");
      agent.signal("SIGHUP");
    },
  );

  testWith("/usr/bin/host", "host", async () => {
    expect(await output(`host ${HOST}`)).toContain(`has address ${SERVICE}`);
    expect(await output(`host ${SERVICE}`)).toContain(`domain name pointer ${HOST}.`);
  });

  testWith("/usr/bin/musl-gcc", "a static binary of musl", async () => {
    const source = `
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_INET}, *found;
  char text[64];
  if (getaddrinfo(argv[1], "80", &hints, &found)) return 1;
  inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof(text));
  puts(text);
  return 0;
}`;
    const binary = await built("ask.c", source, (file, out) => ["musl-gcc", "-static", "-o", out, file]);
    expect(await output(`${binary} ${HOST}`)).toBe(SERVICE);
    expect(await output(`${binary} ${HOST}`, "127.0.0.1")).toBe(SERVICE);
  });

  const go = ["/usr/local/go/bin/go", "/usr/bin/go"].find((path) => existsSync(path)) ?? "/usr/bin/go";
  let goBuilt: Promise<string> | undefined;
  const goBinary = (): Promise<string> => {
    const source = `package main
import ("fmt"; "net"; "os")
func main() {
  found, err := net.LookupHost(os.Args[1])
  fmt.Println(found, err)
}`;
    goBuilt ??= built("ask.go", source, (file, out) => {
      return ["env", "CGO_ENABLED=0", go, "build", "-o", out, file];
    });
    return goBuilt;
  };
  testWith(go, "Go's own resolver", async () => {
    const binary = await goBinary();
    expect(await output(`${binary} ${HOST}`)).toBe(`[${SERVICE}] <nil>`);
    expect(await output(`${binary} ${HOST}`, "127.0.0.1")).toBe(`[${SERVICE}] <nil>`);
  });

  testWith("/usr/bin/java", "Java", async () => {
    const source = `public class Ask { public static void main(String[] args) throws Exception {
  System.out.println(java.net.InetAddress.getByName(args[0]).getHostAddress()); } }`;
    const folder = join(lab.folder, "java");
    mkdirSync(folder);
    writeFileSync(join(folder, "Ask.java"), source);
    const { stdout, stderr } = await ask(`java ${folder}/Ask.java ${HOST}`);
    // A runtime alone can't compile.
    if (/jdk.compiler|Unrecognized|ClassNotFound/.test(stderr))
      console.warn("skipped: Java: there is no compiler");
    else expect(stdout.trim()).toBe(SERVICE);
  });

  testWith("/usr/bin/node", "Node's two ways, and a connection by name", async () => {
    const script = `const dns = require("node:dns").promises; (async () => {
      console.log((await dns.resolve4("${HOST}")).join(), (await dns.lookup("${HOST}", 4)).address);
    })()`;
    expect(await output(`node -e '${script}'`)).toBe(`${SERVICE} ${SERVICE}`);
  });

  const cacheOf = (name: string, command: string, governed = true) =>
    new OwnedProcess({
      name,
      log: join(lab.folder, `${name}.log`),
      command: ["sh", "-c", command],
      netns: lab.namespace.path,
      ...(governed ? { cgroup: lab.apps } : {}),
    });

  /** A cache that is governed asks a server that is not there, in the name of who is not governed. */
  const behindCache = async (name: string, command: string) => {
    const cache = cacheOf(name, command);
    try {
      await eventually(`${name} answers`, async () => {
        const found = await output(`getent ahostsv4 ${HOST}`, "127.0.0.1", false);
        return found.includes(SERVICE);
      });
      expect(await output(`getent hosts ${SERVICE}`, "127.0.0.1", false)).toContain(HOST);
      expect(await output(`dig +short ${HOST} AAAA`, "127.0.0.1", false)).toBe("");
      expect(await output(`dig ${HOST} AAAA`, "127.0.0.1", false)).toMatch(/status: NOERROR/);
      await eventually("status knows who asks for all", async () => {
        const { askers, resolvers } = (await names()) ?? {};
        return Bun.deepEquals(
          [askers, resolvers],
          ["machine", [{ via: "127.0.0.1", program: name, governed: true }]],
        );
      });
      expect((await lab.kmesh("status")).stdout).toContain(
        `answered in the kernel for whoever asks on this machine, since ${name} asks in the name of all`,
      );
    } catch (error) {
      throw new Error(`${error}\n${cache.tail(20)}`);
    } finally {
      await cache.stop("SIGKILL");
    }
  };

  const dnsmasq = `exec dnsmasq --no-daemon --no-resolv --no-hosts --conf-file=/dev/null --user=root --pid-file= --server=${SERVER} --listen-address=127.0.0.1 --bind-interfaces`;

  testWith("/usr/sbin/dnsmasq", "dnsmasq as a local cache", () => behindCache("dnsmasq", dnsmasq));

  testWith(
    "/usr/sbin/dnsmasq",
    "a cache that is not governed has no mesh names; who is governed gets them before it",
    async () => {
      const upstream = await server();
      const cache = cacheOf("dnsmasq", dnsmasq, false);
      try {
        await eventually("status knows it", async () => {
          const { askers, resolvers } = (await names()) ?? {};
          return askers === "enrolled" && resolvers?.[0]?.program === "dnsmasq" && !resolvers[0].governed;
        });
        expect(await output(`getent ahostsv4 ${HOST}`, "127.0.0.1", false)).toBe("");
        expect(await output(`getent ahostsv4 ${HOST}`, "127.0.0.1")).toContain(SERVICE);
        expect((await lab.kmesh("status")).stdout).toContain(
          "apps ask dnsmasq at 127.0.0.1: it is not governed",
        );
      } finally {
        upstream.kill();
        await cache.stop("SIGKILL");
      }
    },
  );

  const unbound = (modules: string, more = "") => {
    const file = join(lab.folder, "unbound.conf");
    writeFileSync(
      file,
      `server:
  directory: "${lab.folder}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  interface: 127.0.0.1
  do-ip6: no
  module-config: "${modules}"
  local-zone: "10.in-addr.arpa." nodefault
${more}forward-zone:
  name: "."
  forward-addr: ${SERVER}
`,
    );
    return `exec unbound -d -c ${file}`;
  };

  testWith("/usr/sbin/unbound", "unbound as a local cache", () =>
    behindCache("unbound", unbound("iterator")),
  );

  /** The root's (data.iana.org/root-anchors). */
  const ANCHOR = ". IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D";

  testWith(
    "/usr/sbin/unbound",
    "unbound that validates refuses mesh names, unless they are insecure to it",
    async () => {
      const anchor = `  trust-anchor: "${ANCHOR}"\n`;
      const upstream = await server();
      const cache = cacheOf("unbound", unbound("validator iterator", anchor));
      try {
        await eventually("it says that it can't be true", async () =>
          /status: SERVFAIL/.test(await output(`dig +time=5 +tries=1 ${HOST}`, "127.0.0.1", false)),
        );
        // The kernel answered: the resolver drops it.
        expect(await output(`dig +cd +short ${HOST}`, "127.0.0.1", false)).toBe(SERVICE);
      } finally {
        upstream.kill();
        await cache.stop("SIGKILL");
      }
      await behindCache(
        "unbound",
        unbound(
          "validator iterator",
          `${anchor}  domain-insecure: "cluster.local"\n  domain-insecure: "10.in-addr.arpa"\n`,
        ),
      );
    },
  );

  testWith(
    "/usr/bin/delv",
    "delv validates itself: without a signature there is no answer, with -i there is",
    async () => {
      expect(await output(`delv -i ${HOST}`)).toContain(SERVICE);
      const { stdout, stderr } = await ask(`delv ${HOST}`);
      expect(stdout).not.toContain(SERVICE);
      expect(stderr).toContain("resolution failed");
    },
  );
});
