/**
 * Other programs' resolvers ask for mesh names: command-line clients, C libraries, Go, Java, and local caches in front of
 * a server that is not there. What is missing on the machine is left out, and said.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { AgentLab, missing, SERVICE, shop } from "../e2e/agent-lab.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess, type RunResult, run } from "../lab/process.ts";

const why = missing();
if (why) console.warn(`skipped: resolvers: ${why}`);

setDefaultTimeout(60_000);

const HOST = "shop.demo.svc.cluster.local";
const SERVER = "10.77.0.2";

/** Tests of `tool`, which is a path, are left out where it is missing. */
function testWith(tool: string, name: string, body: () => Promise<void>): void {
  if (!existsSync(tool)) console.warn(`skipped: ${name}: ${tool} is missing`);
  test.skipIf(!existsSync(tool))(name, body);
}

describe.skipIf(why !== undefined)("resolvers of other programs", () => {
  let lab: AgentLab;
  let beyond: NetworkNamespace;

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

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 50, v2: 50 }));
    beyond = await NetworkNamespace.create("far");
    await lab.namespace.connect(beyond, ["10.77.0.1/24"], [`${SERVER}/24`]);
    await lab.liveAgent();
    await eventually("names are live", async () => ((await lab.toldStatus()).names?.entries ?? 0) > 0);
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
  testWith(go, "Go's own resolver", async () => {
    const source = `package main
import ("fmt"; "net"; "os")
func main() {
  found, err := net.LookupHost(os.Args[1])
  fmt.Println(found, err)
}`;
    const binary = await built("ask.go", source, (file, out) => [
      "env",
      "CGO_ENABLED=0",
      go,
      "build",
      "-o",
      out,
      file,
    ]);
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

  /** A cache that is governed asks a server that is not there, in the name of who is not governed. */
  const behindCache = async (name: string, command: string) => {
    const cache = new OwnedProcess({
      name,
      log: join(lab.folder, `${name}.log`),
      command: ["sh", "-c", command],
      netns: lab.namespace.path,
      cgroup: lab.apps,
    });
    try {
      await eventually(`${name} answers`, async () => {
        const found = await output(`getent ahostsv4 ${HOST}`, "127.0.0.1", false);
        return found.includes(SERVICE);
      });
      expect(await output(`getent hosts ${SERVICE}`, "127.0.0.1", false)).toContain(HOST);
      expect(await output(`dig +short ${HOST} AAAA`, "127.0.0.1", false)).toBe("");
      expect(await output(`dig ${HOST} AAAA`, "127.0.0.1", false)).toMatch(/status: NOERROR/);
    } catch (error) {
      throw new Error(`${error}\n${cache.tail(20)}`);
    } finally {
      await cache.stop("SIGKILL");
    }
  };

  testWith("/usr/sbin/dnsmasq", "dnsmasq as a local cache", () =>
    behindCache(
      "dnsmasq",
      `exec dnsmasq --no-daemon --no-resolv --no-hosts --conf-file=/dev/null --user=root --pid-file= --server=${SERVER} --listen-address=127.0.0.1 --bind-interfaces`,
    ),
  );

  testWith("/usr/sbin/unbound", "unbound as a local cache", () => {
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
  module-config: "iterator"
  local-zone: "10.in-addr.arpa." nodefault
forward-zone:
  name: "."
  forward-addr: ${SERVER}
`,
    );
    return behindCache("unbound", `exec unbound -d -c ${file}`);
  });
});
