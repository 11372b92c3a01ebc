import { expect, test } from "bun:test";
import type { AgentStatus } from "../../admin/status.ts";
import type { Summary } from "../../datapath/inspect/state.ts";
import type { UnitState } from "../../datapath/tables/unit.ts";
import { formatBrief, formatProblems, formatStatus } from "./page.ts";
import { narrow, noMatch } from "./services.ts";

const NOW = Date.parse("2026-01-01T00:10:00Z");

const type = {
  resources: 0,
  subscribed: 0,
  unanswered: 0,
  rejected: 0,
  responses: 0,
  bytes: 0,
  unchanged: 0,
  changed: 0,
  removed: 0,
  refused: 0,
};

function agent(change: Partial<AgentStatus> = {}): AgentStatus {
  return {
    version: "1.2.3",
    pid: 77,
    startedAt: "2026-01-01T00:00:00Z",
    writtenAt: "2026-01-01T00:09:00Z",
    mode: "kernel-native",
    node: { namespace: "demo", serviceAccount: "default", addresses: ["10.0.0.5"] },
    shadow: false,
    cgroups: ["/"],
    units: [],
    excludes: [],
    netns: "own",
    adopted: false,
    stream: {
      target: "istiod:15010",
      plaintext: true,
      connected: true,
      connectedSince: NOW - 60_000,
      connections: 1,
      synced: true,
      version: "v1",
      pushes: 2,
      lastPush: NOW - 5_000,
      types: {
        cluster: type,
        endpoints: type,
        listener: type,
        route: type,
        names: type,
        address: type,
        authorization: type,
      },
      rejected: [],
    },
    tables: {
      applies: 2,
      writes: 12,
      firstWrites: 9,
      lastWrites: 3,
      lastMilliseconds: 0.4,
      lastApplyAt: "2026-01-01T00:09:55Z",
    },
    mesh: {
      current: true,
      services: 2,
      frontends: 3,
      clusters: 4,
      endpoints: 5,
      notes: [],
      serviceNotes: [],
    },
    ...change,
  };
}

const SETTINGS = {
  shadow: false,
  netns: "initial",
  cgroups: ["/"],
  units: [],
  exclusions: [],
  fallback: "pass",
};

function kernel(change: Partial<Summary> = {}): Summary {
  return {
    bpffs: "/sys/fs/bpf/kmesh",
    abi: "abc",
    hooks: [
      { hook: "connect4", attached: true, programId: 1 },
      { hook: "connect6", attached: true, programId: 2 },
    ],
    settings: SETTINGS,
    services: [
      { service: "", redirected: 0, passed: 7, wouldRedirect: 0, wouldRefuse: 0, refused: {}, failed: 0 },
      { service: "b:80", redirected: 5, passed: 0, wouldRedirect: 0, wouldRefuse: 0, refused: {}, failed: 0 },
      {
        service: "a:80",
        redirected: 9,
        passed: 0,
        wouldRedirect: 0,
        wouldRefuse: 0,
        refused: { "no-endpoint": 2 },
        failed: 3,
      },
    ],
    tables: [{ name: "targets", capacity: 256, bytes: 2 ** 20 }],
    ...change,
  };
}

const tell = (a: AgentStatus | undefined, k: Summary | undefined, dead?: string) =>
  formatStatus({ agent: a, kernel: k }, dead, "/sys/fs/bpf/kmesh", false, NOW);

test("a healthy mesh", () => {
  const text = tell(agent(), kernel());
  expect(text).toContain("runs: pid 77, for 10 min, kernel-native, version 1.2.3");
  expect(text).toContain("istiod:15010 (plaintext), connected for 60 s, last push 5.0 s ago");
  expect(text).toContain("2 services, 3 frontends, 4 clusters, 5 endpoints");
  expect(text).toContain("attached: connect4, connect6");
  expect(text).not.toContain("NOT ");
  const services = text.split("\n").filter((line) => /^(a:80|b:80|\(no service\))/.test(line));
  expect(services.map((line) => line.split(/\s{2,}/))).toEqual([
    ["a:80", "9", "0", "2 no-endpoint", "3"],
    ["b:80", "5", "0", "-", "0"],
    ["(no service)", "0", "7", "-", "0"],
  ]);
});

test("endpoints that are ejected, and when that is done for all clusters", () => {
  const ejections = (change: object) => kernel({ ejections: { now: [], ever: 0, stale: false, ...change } });
  expect(tell(agent(), ejections({}))).toMatch(/^ejected +no endpoint$/m);
  const one = { cluster: "outbound|80||a", address: "10.1.0.1", port: 80, forMs: 20_500 };
  expect(tell(agent(), ejections({ now: [one], ever: 3 }))).toContain(
    "10.1.0.1:80 of outbound|80||a for 21 s; 3 times in all",
  );
  expect(tell(agent(), ejections({ stale: true }))).toContain("no endpoint; the tables follow no istiod");
});

test("units by name, and whether each is there", () => {
  const settings = (cgroups: string[], units: UnitState[]) =>
    kernel({ settings: { ...SETTINGS, cgroups, units } });
  const units = [
    { unit: "a.service", cgroup: "/sys/fs/cgroup/system.slice/a.service", populated: true },
    { unit: "b.service", cgroup: "/sys/fs/cgroup/system.slice/b.service", populated: false },
    { unit: "c.service", populated: false },
  ];
  expect(tell(agent(), settings(["/x"], units))).toContain(
    "/x, a.service (runs), b.service (has no process now), c.service (is not there now); network",
  );
  expect(tell(agent(), settings([], []))).toContain("nothing: no cgroup and no unit is enrolled");
});

test("without an agent the kernel's part is the same, and the page says who is missing", () => {
  const text = tell(agent(), kernel(), "No agent runs. The last one (pid 77) wrote its status 60 s ago");
  expect(text).toMatch(/^agent {12}No agent runs\..*\n {17}systemctl start kmesh starts an agent;/m);
  expect(text).toContain("not followed now");
  expect(text).toContain("a:80");
});

test("tables from a snapshot, and how old it is", () => {
  const snapshot = {
    writtenAt: "2026-01-01T00:00:00Z",
    appliedAt: "2026-01-01T00:09:00Z",
    writes: 12,
    milliseconds: 3.21,
  };
  const text = tell(agent({ snapshot, mesh: { ...agent().mesh, current: false } }), kernel());
  expect(text).toContain(
    "governs until istiod's first push; written 10 min ago, live for 60 s (12 map writes, 3.2 ms)",
  );
  expect(text).toContain("2 services, 3 frontends, 4 clusters, 5 endpoints, from the snapshot");
  expect(tell(agent(), kernel())).not.toContain("snapshot");
});

test("nothing pinned", () => {
  expect(tell(undefined, undefined, "No agent runs")).toContain(
    "holds nothing: nothing is pinned in /sys/fs/bpf/kmesh",
  );
});

test("what is not as it should be is told before the services", () => {
  const rejected = [{ type: "cluster" as const, resource: "outbound|80||a", reason: "port 0", since: NOW }];
  const base = agent();
  const text = tell(
    agent({
      stream: {
        ...base.stream,
        connected: false,
        disconnectedSince: NOW - 3_000,
        lastError: { at: NOW, text: "nothing listens at istiod:15010" },
        rejected,
      },
      mesh: {
        ...base.mesh,
        notes: [{ kind: "not-enforced", text: "inbound STRICT is not enforced" }],
        serviceNotes: [{ service: "a:80", notes: [{ kind: "layer7", text: "a header match" }] }],
      },
    }),
    kernel({
      hooks: [
        { hook: "connect4", attached: true },
        { hook: "connect6", attached: false },
      ],
      settings: { ...SETTINGS, shadow: true },
    }),
  );
  expect(text).toContain("not connected for 3.0 s; the tables are unchanged");
  expect(text).toContain("nothing listens at istiod:15010");
  expect(text).toContain("NOT attached: connect6");
  const warnings = text.slice(text.indexOf("NOT ENFORCED, OR"), text.indexOf("SERVICE "));
  expect(warnings).toContain("Shadow mode");
  expect(warnings).toContain("inbound STRICT is not enforced");
  expect(warnings).toContain("Refused istiod's cluster outbound|80||a: port 0");
  expect(text).toContain("WOULD REDIRECT");
  expect(text).toContain("LAYER 7, NOT ENFORCED YET\n  a:80: a header match");
});

test("tables of another version: what is known of them, and who can tell the rest", () => {
  const { settings: _, ...rest } = kernel({ foreign: "def", tables: [] });
  const text = formatStatus({ agent: agent(), kernel: rest }, undefined, "/sys/fs/bpf/kmesh", false);
  expect(text).toContain("tables of another kmesh version govern (layout def, this one reads abc)");
  expect(text).toContain("attached: connect4, connect6");
  expect(text).not.toContain("other addresses");
  expect(text).toMatch(/b:80 +5/);
});

test("a screen's worth of services, and how many more there are", () => {
  const many = Array.from({ length: 100 }, (_, i) => ({
    service: `s${i}:80`,
    redirected: i,
    passed: 0,
    wouldRedirect: 0,
    wouldRefuse: 0,
    refused: {},
    failed: 0,
  }));
  const text = tell(agent(), kernel({ services: many }));
  expect(text).toContain("s99:80");
  expect(text).not.toContain("s59:80");
  expect(text).toContain(
    "... and 59 more with connections; 1 service without a connection: --all lists them",
  );
});

test("the machine's certificate is told with its life, and what keeps it from a new one", () => {
  const id = "spiffe://cluster.local/ns/demo/sa/default";
  const lines = (identity: AgentStatus["identity"]) =>
    formatStatus(
      { agent: agent(identity ? { identity } : {}), kernel: undefined },
      undefined,
      "/b",
      false,
      NOW,
    )
      .split("\n")
      .map((line) => line.replace(/ +/g, " "));
  const life = (offset: number) => ({ serial: "1", notBefore: 0, notAfter: NOW + offset, valid: offset > 0 });
  const lastError = { at: NOW, text: "the token is dead" };
  expect(lines({ id, renewal: NOW + 60_000, obtained: 1, certificate: life(120_000) })).toContain(
    `identity ${id}, its certificate is good for 2 min, renewed in 60 s`,
  );
  const late = lines({ id, renewal: 0, obtained: 0, certificate: life(-120_000), lastError });
  expect(late).toContain(`identity ${id}, its certificate EXPIRED 2 min ago`);
  expect(late).toContain(" the token is dead");
  expect(lines({ id, renewal: 0, obtained: 0 })).toContain(`identity ${id}, no certificate yet`);
  expect(lines(undefined).join("\n")).not.toContain("identity");
});

test("connections older than the attach are told with their cgroups, and what to do", () => {
  const told = (older: Parameters<typeof formatStatus>[0]["older"]) =>
    formatStatus({ agent: agent(), kernel: undefined, older }, undefined, "/sys/fs/bpf/kmesh", false, NOW);
  const cgroups = [{ cgroup: "/sys/fs/cgroup/app", connections: 3 }];
  expect(told({ connections: 0, complete: true, cgroups: [] })).not.toContain("older");
  const text = told({ connections: 3, complete: true, cgroups });
  expect(text).toContain("3 connections are older than the attach");
  expect(text).toContain("go directly, until the app connects anew");
  expect(text).toContain("/sys/fs/cgroup/app (3)");
  expect(told({ connections: 3, complete: false, cgroups })).toContain("At least 3 connections");
  expect(told({ error: "no tcp_diag" })).toContain("is not known: no tcp_diag");
});

/** The lines of a page, with runs of blanks reduced to one. */
function linesOf(change: Partial<AgentStatus>): string[] {
  return formatStatus({ agent: agent(change), kernel: undefined }, undefined, "/b", false, NOW)
    .split("\n")
    .map((line) => line.replace(/ +/g, " "));
}

test("one trouble is told once, though it keeps both the certificate and the stream away", () => {
  const lastError = { at: NOW, text: "the certificate expired, and the token is dead: write a fresh one" };
  const stream = { ...agent().stream, connected: false, lastError };
  const lines = linesOf({
    stream,
    identity: { id: "spiffe://x/ns/a/sa/b", renewal: 0, obtained: 0, lastError },
  });
  expect(lines.filter((line) => line.includes("the token is dead")).length).toBe(1);
});

test("the registration: by a group or by hand, and what peers are told, with the cure where it is wrong", () => {
  const where = { namespace: "shop", entry: "vms-10.0.0.5", address: "10.0.0.5", needs: ["kubectl this"] };
  const group = { ...where, group: "vms" };
  const told = (registration: AgentStatus["registration"], more: Partial<AgentStatus> = {}) => {
    const lines = linesOf({ ...(registration ? { registration } : {}), ...more });
    const at = lines.findIndex((line) => line.startsWith("registered"));
    return at < 0
      ? []
      : lines.slice(
          at,
          lines.findIndex((line) => line.startsWith("mesh")),
        );
  };
  expect(told(undefined)).toEqual([]);
  expect(told(group)).toEqual([
    "registered while connected, as WorkloadEntry vms-10.0.0.5 of namespace shop by group vms",
    " peers are told to send plaintext; no service has 10.0.0.5 now",
  ]);
  expect(told({ ...group, peers: { plaintext: ["a:80", "b:80"], mtls: [], hbone: [] } })[1]).toBe(
    " peers are told to send plaintext to 10.0.0.5 for a:80, b:80",
  );
  expect(told({ ...group, peers: { plaintext: [], mtls: ["a:80"], hbone: [] } }).slice(1)).toEqual([
    " peers are told to send mTLS to 10.0.0.5 for a:80, WHICH NO TUNNEL TAKES: the entry is another agent's, or older than the tunnel, and istiod changes no labels of an entry that exists",
    " kubectl this",
  ]);
  const away = { ...agent().stream, connected: false };
  expect(told(group, { stream: away })).toEqual([
    "registered not for long: istiod takes away WorkloadEntry vms-10.0.0.5 of namespace shop (group vms) 10 s after a connection",
  ]);
  expect(told(where)).toEqual([
    "registered by hand, as WorkloadEntry vms-10.0.0.5 of namespace shop",
    " no service has 10.0.0.5 now; for plaintext it needs",
    " kubectl this",
  ]);
  expect(told({ ...where, peers: { plaintext: [], mtls: ["a:80"], hbone: [] } })[1]).toEndWith(
    "NO TUNNEL TAKES: the entry lacks labels",
  );
});

test("health: the verdict, what speaks against it, and whether istiod is told", () => {
  const registration = { namespace: "shop", entry: "e", address: "10.0.0.5", group: "vms", needs: [] };
  const health = { probe: "GET http://10.0.0.5:80/", streak: 0, checks: 7 };
  expect(linesOf({ health })).toContain(
    "health not known yet after 7 checks (GET http://10.0.0.5:80/); not reported to istiod: set workload-group, or workload-entry",
  );
  const reported = { healthy: false, at: NOW };
  const bad = { ...health, healthy: false, since: NOW - 60_000, message: "HTTP status 503" };
  const lines = linesOf({ registration, health: bad, stream: { ...agent().stream, reported } });
  expect(lines).toContain("health NOT HEALTHY for 60 s (GET http://10.0.0.5:80/); reported to istiod");
  expect(lines).toContain(" HTTP status 503");
  const stream = { ...agent().stream, healthNotTaken: "this istiod takes no health reports" };
  const streak = { ...health, healthy: true, since: NOW - 60_000, streak: 1, message: "no" };
  expect(linesOf({ registration, health: streak, stream })).toContain(
    "health healthy for 60 s, 1 check against it (GET http://10.0.0.5:80/); this istiod takes no health reports",
  );
  const byHand = linesOf({ registration: { ...registration, healthNeeds: ["kubectl that"] }, health: bad });
  expect(byHand).toContain(" the entry was made by hand: istiod heeds it only after");
  expect(byHand).toContain(" kubectl that");
});

test("damage: what, what follows, what mends it; before anything else", () => {
  const damage = [{ what: "connect4 is not attached", consequence: "past the mesh", cure: "kmesh run" }];
  const text = formatStatus({ agent: agent(), kernel: undefined, damage }, undefined, "/bpffs", false, NOW);
  expect(text).toContain(
    "\n\nDAMAGED\n  connect4 is not attached\n    so: past the mesh\n    cure: kmesh run",
  );
  expect(
    formatStatus({ agent: agent(), kernel: undefined, damage: [] }, undefined, "/bpffs", false, NOW),
  ).not.toContain("DAMAGED");
});

test("a clock that was set back since is told, one that is a moment behind is not", () => {
  const told = (now: number) =>
    formatStatus({ agent: agent(), kernel: undefined }, undefined, "/bpffs", false, now);
  expect(told(NOW - 20_000)).not.toContain("set back");
  expect(told(NOW - 3 * 3_600_000)).toContain(
    "clock was set back: something above was written 3 h from now, so ages are too small",
  );
  expect(told(NOW + 365 * 86_400_000)).not.toContain("set back");
});

test("trouble comes first, idle services are summed up, and the head names who was refused", () => {
  const one = (service: string, change: Partial<Summary["services"][number]> = {}) => ({
    service,
    redirected: 0,
    passed: 0,
    wouldRedirect: 0,
    wouldRefuse: 0,
    refused: {},
    failed: 0,
    ...change,
  });
  const services = [
    one("", { passed: 3 }),
    ...Array.from({ length: 60 }, (_, i) => one(`idle${i}:80`)),
    one("busy:80", { redirected: 900 }),
    one("refused:80", { refused: { "no-endpoint": 50 } }),
    one("flaky:80", { redirected: 10, failed: 2 }),
  ];
  const answer = { agent: agent(), kernel: kernel({ services }) };
  const page = tell(answer.agent, answer.kernel);
  expect(page.split("\n").slice(0, 2)).toEqual([
    "REFUSED          50 connections: 50 of refused:80 (no-endpoint)",
    "FAILED           2 connections: 2 of flaky:80",
  ]);
  const rows = page.slice(page.indexOf("SERVICE ")).split("\n");
  expect(rows.slice(1, 6).map((row) => row.split(/ {2,}/)[0])).toEqual([
    "refused:80",
    "flaky:80",
    "busy:80",
    "(no service)",
    "60 services without a connection: --all lists them",
  ]);
  const problems = formatProblems(narrow(answer, { problems: true }), undefined, NOW);
  expect(problems).toContain("refused:80");
  expect(problems).not.toMatch(/busy:80|idle/);
  expect(
    formatProblems({ agent: agent(), kernel: kernel({ services: [one("a:80")] }) }, undefined, NOW),
  ).toBe("No problems.");
  const found = narrow(answer, { pattern: "idle1?:*", problems: false }).kernel;
  expect(found?.services.map(({ service }) => service)).toEqual(
    Array.from({ length: 10 }, (_, i) => `idle1${i}:80`),
  );
  expect(narrow(answer, { pattern: "usy", problems: false }).kernel?.services.length).toBe(1);
  const none = narrow(answer, { pattern: "nosuch", problems: false }).kernel;
  expect(noMatch(none, "nosuch")).toBe('No service matches "nosuch"; kmesh status --all lists them.');
  expect([noMatch(found, "idle1?:*"), noMatch(kernel(), undefined)]).toEqual([undefined, undefined]);
  for (const page of [formatBrief(answer, "No agent runs."), formatProblems(answer, "No agent runs.", NOW)])
    expect(page).toMatch(/^agent +No agent runs\.\n +systemctl start kmesh starts an agent;/m);
  expect(formatBrief(answer, undefined).split("\n")).toEqual([
    "REFUSED   50 connections: 50 of refused:80 (no-endpoint)",
    "FAILED    2 connections: 2 of flaky:80",
    "agent     runs: pid 77, version 1.2.3",
    "istiod    connected",
    "hooks     all attached",
    "services  63, 2 with refused or failed connections",
  ]);
});

test("what this kernel can't do stands among the rows of the kernel", () => {
  const limit = "no MPTCP sockets found by connect programs (from Linux 5.19 on): nothing counts them";
  const page = (limits: string[]) =>
    formatStatus({ agent: agent(), kernel: kernel({ limits }) }, undefined, "/b", false, NOW);
  expect(page([limit])).toMatch(/^this kernel has {2,}no MPTCP sockets found by connect programs/m);
  expect(page([])).not.toContain("this kernel has");
});
