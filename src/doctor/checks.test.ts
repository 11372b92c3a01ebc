import { afterAll, beforeAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { createServer as createHttp2Server } from "node:http2";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import { Authority } from "../../test/lab/authority.ts";
import { type Config, examineConfig } from "../config/config.ts";
import { sourcesOf } from "../config/sources.ts";
import { examineFiles } from "../machine/config-files.ts";
import { type Check, type Finding, firstError, runChecks } from "./check-runner.ts";
import { checksOf } from "./checks.ts";
import { isLockedDown } from "./machine-checks.ts";

let folder = "";
let authority: Authority;
const cleanups: (() => void)[] = [];
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-doctor-"));
  authority = new Authority(folder);
  writeFileSync(join(folder, "root.pem"), authority.root);
  writeFileSync(join(folder, "token"), tokenOf("default", 3600), { mode: 0o600 });
});
afterAll(() => {
  for (const cleanup of cleanups) cleanup();
  rmSync(folder, { recursive: true, force: true });
});

/** A token in the API server's format, valid for this number of seconds. */
function tokenOf(account: string, seconds: number): string {
  const exp = Math.floor(Date.now() / 1000) + seconds;
  const claims = { aud: ["istio-ca"], exp, sub: `system:serviceaccount:default:${account}` };
  return `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.sig`;
}

function configOf(settings: Record<string, unknown> = {}): { config: Config; checks: Check[] } {
  const { config, problems } = examineConfig({
    flags: {
      istiod: "127.0.0.1:1",
      ca: join(folder, "root.pem"),
      token: join(folder, "token"),
      bpffs: "/sys/fs/bpf/kmesh-doctor",
      "state-dir": join(folder, "state"),
      "run-dir": join(folder, "run"),
      ...settings,
    } as Record<string, string | boolean>,
    env: {},
    file: { path: join(folder, "none.yaml"), required: false },
  });
  return { config, checks: checksOf({ config, problems, remarks: [] }, "none.yaml") };
}

/** The findings of one check, as if the checks that it needs had passed. */
async function look(name: string, settings: Record<string, unknown> = {}): Promise<Finding[]> {
  const { checks } = configOf(settings);
  // The check of the connection uses the name.
  for (const before of ["name", name]) {
    const check = checks.find((each) => each.name === before);
    const findings = (await check?.look()) ?? [];
    if (before === name) return findings;
  }
  return [];
}
const lines = (findings: Finding[]) =>
  findings.map((each) => `${each.state}: ${each.text}${"cure" in each ? ` => ${each.cure}` : ""}`);

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  cleanups.push(() => server.close());
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
}

test("checks whose ground is wrong are not looked at, the others are; the first wrong thing is named", async () => {
  const looked: string[] = [];
  const check = (name: string, needs: string[], ...found: Finding[]): Check => ({
    name,
    needs,
    look: () => {
      looked.push(name);
      return found.length > 0 ? found : [{ state: "ok", text: "fine" }];
    },
  });
  const broken = { state: "error", text: "broken", cure: "mend it" } as const;
  const told: string[] = [];
  const results = await runChecks(
    [
      check("a", []),
      check("b", [], { state: "warning", text: "so so" }),
      check("c", ["a", "b"], broken, { state: "warning", text: "and" }),
      check("d", ["c"]),
      check("e", ["d"]),
      check("f", ["a"], { ...broken, text: "too" }),
      { name: "g", needs: [], look: () => Promise.reject(new Error("thrown")) },
    ],
    ({ check, state }) => told.push(`${check} ${state}`),
  );
  expect(told).toEqual(["a ok", "b warning", "c error", "d skipped", "e skipped", "f error", "g error"]);
  expect(looked).toEqual(["a", "b", "c", "f"]);
  expect(firstError(results)).toEqual({ check: "c", text: "broken", cure: "mend it" });
  expect(firstError(results.slice(0, 2))).toBeUndefined();
});

test("the configuration comes first, with each thing that is wrong", async () => {
  const { checks } = configOf({ istiod: "nowhere:x:y", mode: "both" });
  const results = await runChecks(checks);
  expect(results[0]).toMatchObject({ check: "configuration", state: "error" });
  expect(results[0]?.findings.length).toBe(2);
  expect(results.map(({ check }) => check)).toEqual([
    "configuration",
    "kernel",
    "cgroup2",
    "bpffs",
    "clock",
    "files",
    "names",
    "name",
    "connection",
    "TLS",
    "identity",
    "agent",
    "tunnel",
  ]);
  for (const result of results.slice(7, 11)) expect(result.state).toBe("skipped");
});

test("a configuration that others can write", async () => {
  const file = join(folder, "open.yaml");
  writeFileSync(file, "");
  chmodSync(file, 0o666);
  const sources = sourcesOf({ config: file, istiod: "a:1", plaintext: true }, {});
  const look = async () => lines((await checksOf(examineFiles(sources, "ignored"), file)[0]?.look()) ?? []);
  expect((await look())[1]).toBe(
    `warning: ${file} may be written by others (mode 666): whoever writes there decides where this machine's connections go => chmod go-w ${file}`,
  );
  chmodSync(file, 0o644);
  expect((await look()).length).toBe(1);
});

test("files: roots, token, folders, and who may read them", async () => {
  expect((await look("files")).map(({ state }) => state)).toEqual(["ok", "ok"]);
  const open = join(folder, "open-token");
  writeFileSync(open, tokenOf("default", 60));
  chmodSync(open, 0o644);
  expect(lines(await look("files", { token: open }))).toContain(
    `warning: others can read the token in ${open}, and be this machine with it => chmod 0600 ${open}`,
  );
  const gone = join(folder, "gone");
  const fresh = (file: string) =>
    `Write a fresh one with kubectl create token default --namespace default --audience istio-ca > ${file}`;
  expect(lines(await look("files", { token: gone })).at(-1)).toBe(
    `error: can't read the token ${gone} (ENOENT) => ${fresh(gone)}`,
  );
  const expired = join(folder, "expired-token");
  writeFileSync(expired, tokenOf("default", -60), { mode: 0o600 });
  expect(lines(await look("files", { token: expired })).at(-1)).toMatch(
    /^error: .* it expired at \S+Z => Write a/,
  );
  writeFileSync(expired, tokenOf("other", 60), { mode: 0o600 });
  expect(lines(await look("files", { token: expired })).at(-1)).toContain(
    "it is system:serviceaccount:default:other's, not system:serviceaccount:default:default's",
  );
  writeFileSync(join(folder, "no.pem"), "none");
  expect(lines(await look("files", { ca: join(folder, "no.pem") }))[0]).toContain("holds no PEM certificate");
  const state = join(folder, "loose");
  mkdirSync(state);
  chmodSync(state, 0o755);
  expect(lines(await look("files", { "state-dir": state }))[0]).toBe(
    `warning: others can look into ${state} (mode 755) => chmod 0700 ${state}`,
  );
  chmodSync(state, 0o777);
  expect(lines(await look("files", { "state-dir": state }))[0]).toBe(
    `error: ${state} may be written by others (mode 777): \`kmesh run\` refuses that => chmod go-w ${state}`,
  );
  expect(lines(await look("files", { "state-dir": join(folder, "token") }))[0]).toContain("is not a folder");
  chmodSync(state, 0o700);
  writeFileSync(join(state, "manifest.json"), '{"version":9}');
  expect(lines(await look("files", { "state-dir": state }))[0]).toStartWith(
    `error: ${join(state, "manifest.json")} was written by another kmesh in format 9; this one `,
  );
  expect(lines(await look("files", { plaintext: true })).at(-1)).toContain("neither roots nor a token");
});

test("a clock that is behind what lies on this machine", async () => {
  const ahead = join(folder, "ahead.pem");
  writeFileSync(ahead, authority.root);
  const future = new Date(Date.now() + 86_400_000);
  utimesSync(ahead, future, future);
  const [finding] = await look("clock", { ca: ahead });
  expect(finding).toMatchObject({ state: "error" });
  expect(finding?.text).toContain(`but ${ahead} is from ${future.toISOString().slice(0, 10)}`);
  expect((await look("clock"))[0]?.state).toBeOneOf(["ok", "warning"]);
});

test("a pin folder that can't be one", async () => {
  expect(lines(await look("bpffs", { bpffs: folder }))[0]).toStartWith(`error: ${folder} is not on a bpffs`);
});

test("of several addresses the one that answers is used, the others are named", async () => {
  const port = await listen(createServer());
  const hosts = ["istiod.x=127.0.0.9", "istiod.x=127.0.0.1"];
  const found = lines(await look("connection", { istiod: `istiod.x:${port}`, hosts }));
  expect(found[0]).toMatch(new RegExp(`^ok: 127.0.0.1:${port} accepts connections`));
  expect(found[1]).toMatch(new RegExp(`^warning: but not 127.0.0.9:${port}: .*ECONNREFUSED`));
});

test("istiod's name: by --hosts, as it is, looked up, unknown", async () => {
  expect(lines(await look("name"))).toEqual(["ok: 127.0.0.1 is an address"]);
  expect(lines(await look("name", { istiod: "istiod.x:1", hosts: ["istiod.x=10.0.0.9"] }))).toEqual([
    "ok: istiod.x is 10.0.0.9, by --hosts",
  ]);
  expect(lines(await look("name", { istiod: "localhost:1" }))[0]).toContain("127.0.0.1");
  const [unknown = ""] = lines(await look("name", { istiod: "no-such-name.invalid:1" }));
  expect(unknown).toMatch(
    /^error: no-such-name.invalid is not known \(E\w+\) => Give its address with --hosts no-such/,
  );
});

test("a connection that is refused, and one that is made", async () => {
  const port = await listen(createServer((socket) => socket.end()));
  expect(lines(await look("connection", { istiod: `127.0.0.1:${port}` }))[0]).toContain(
    "accepts connections",
  );
  const closed = createServer();
  const free = await listen(closed);
  closed.close();
  const [refused = ""] = lines(await look("connection", { istiod: `127.0.0.1:${free}` }));
  expect(refused).toContain("ECONNREFUSED");
  expect(refused).toContain("see that istiod runs");
});

test("TLS: the right name and root, another name, another root, no TLS at all", async () => {
  const serve = async (names: string) => {
    const { key, chain } = authority.issue(names);
    return listen(createTlsServer({ key, cert: chain, ALPNProtocols: ["h2"] }));
  };
  const good = await serve("DNS:istiod.istio-system.svc");
  const [well = ""] = lines(await look("TLS", { istiod: `127.0.0.1:${good}` }));
  expect(well).toMatch(/^ok: TLSv1.3; istiod proves that it is istiod.istio-system.svc, until \S+Z$/);
  const other = await serve("DNS:something.else");
  const [name = ""] = lines(await look("TLS", { istiod: `127.0.0.1:${other}` }));
  expect(name).toStartWith(
    `error: the certificate of istiod at 127.0.0.1:${other} is not for istiod.istio-system.svc (ERR_TLS_CERT_ALTNAME_INVALID`,
  );
  expect(name).toEndWith(" => Reach it by a name in it");
  const stranger = join(folder, "stranger");
  mkdirSync(stranger);
  writeFileSync(join(stranger, "root.pem"), new Authority(stranger).root);
  const ca = join(stranger, "root.pem");
  const [root = ""] = lines(await look("TLS", { istiod: `127.0.0.1:${good}`, ca }));
  expect(root).toStartWith(`error: the certificate of istiod at 127.0.0.1:${good} is not signed by ${ca} (`);
  expect(root).toEndWith(" => Pass the mesh's root there (root-cert.pem of config map istio-ca-root-cert)");
  const plain = await listen(createServer((socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n")));
  const [none = ""] = lines(await look("TLS", { istiod: `127.0.0.1:${plain}` }));
  expect(none).toContain("speaks no TLS there (");
  expect(none).toEndWith(" => Use its TLS port (15012), or --plaintext");
});

test("without TLS: gRPC, a TLS port, an HTTP/1 server, one that hangs up", async () => {
  const { key, chain } = authority.issue("DNS:istiod.istio-system.svc");
  const http2 = createHttp2Server();
  const ask = async (server: Server) => {
    const istiod = `127.0.0.1:${await listen(server)}`;
    const [line = ""] = lines(await look("TLS", { istiod, plaintext: true }));
    return line.replace(istiod, "ISTIOD");
  };
  expect(await ask(http2 as Server)).toStartWith("warning: not used (--plaintext)");
  const wrong = (what: string) =>
    new RegExp(`^error: ISTIOD does not speak gRPC without TLS: ${what} => istiod's`);
  expect(await ask(createTlsServer({ key, cert: chain }))).toMatch(
    wrong("it (speaks TLS|closed the connection)"),
  );
  expect(await ask(createServer((socket) => socket.end("HTTP/1.1 400 Bad\r\n\r\n")))).toMatch(
    wrong("it is an HTTP/1 server"),
  );
  expect(await ask(createServer((socket) => socket.end()))).toMatch(wrong("it closed the connection"));
});

test.skipIf(process.getuid?.() !== 0)("an address to which no route leads is not called refused", () => {
  const flags = ["--istiod=203.0.113.1:15010", "--plaintext", "--output=json", `--state-dir=${folder}/none`];
  const main = join(import.meta.dirname, "../main.ts");
  const command = ["-n", process.execPath, main, "doctor", `--config=/dev/null`, ...flags];
  const { stdout } = spawnSync("unshare", command, { encoding: "utf8", timeout: 20_000 });
  const { checks } = JSON.parse(stdout) as {
    checks: { check: string; findings: { text: string; cure: string }[] }[];
  };
  const [finding] = checks.find(({ check }) => check === "connection")?.findings ?? [];
  expect(finding?.text).toBe(
    "no connection to istiod: 203.0.113.1:15010: no route leads there (ENETUNREACH)",
  );
  expect(finding?.cure).toContain("ip route get 203.0.113.1");
});

test("a kernel that is locked down for confidentiality", () => {
  expect(isLockedDown("none integrity [confidentiality]\n")).toBe(true);
  for (const text of ["none [integrity] confidentiality\n", "[none] integrity confidentiality\n", ""])
    expect(isLockedDown(text)).toBe(false);
});

test("no agent is worth a remark, not a fault", async () => {
  expect(lines(await look("agent"))).toEqual([
    "warning: no agent runs; what is pinned works on => systemctl start kmesh",
  ]);
});
