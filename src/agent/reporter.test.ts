import { expect, test } from "bun:test";
import type { Log } from "../config/log.ts";
import { emptyMesh, type Mesh, type Note } from "../mesh/model.ts";
import { formatOneLine, meshStatusBefore, meshStatusOf, Reporter, tell } from "./reporter.ts";

function recorder(): { lines: string[]; log: Log } {
  const lines: string[] = [];
  const at = (level: string) =>
    Object.assign((line: string) => lines.push(`${level} ${line}`), { raw: () => {} });
  return { lines, log: { error: at("error"), warn: at("warn"), info: at("info"), debug: at("debug") } };
}

function meshWith(notes: Note[], services: [string, Note[]][]): Mesh {
  return {
    ...emptyMesh(),
    services: new Map(services.map(([name, of]) => [name, { name, host: name, port: 80, notes: of }])),
    notes,
  };
}

const strict: Note = { kind: "not-enforced", text: "inbound STRICT is not enforced" };
const layer7: Note = { kind: "layer7", text: "a header match" };
const report = { first: false, writes: 1, milliseconds: 1 };

test("what concerns the machine is warned of once, not at every push", () => {
  const { lines, log } = recorder();
  const reporter = new Reporter(log);
  reporter.applied(meshWith([strict], []), report);
  reporter.applied(meshWith([strict], []), report);
  expect(lines.filter((line) => line.startsWith("warn"))).toEqual(["warn inbound STRICT is not enforced"]);
});

test("services with remarks are counted in one line, again only when the numbers change", () => {
  const { lines, log } = recorder();
  const reporter = new Reporter(log);
  const warnings = () => lines.filter((line) => line.startsWith("warn")).length;
  reporter.applied(
    meshWith(
      [],
      [
        ["a", [layer7, layer7]],
        ["b", [layer7]],
        ["c", []],
      ],
    ),
    report,
  );
  expect(lines.at(-1)).toContain("2 layer 7, not enforced yet");
  reporter.applied(
    meshWith(
      [],
      [
        ["a", [layer7]],
        ["b", [layer7]],
      ],
    ),
    report,
  );
  expect(warnings()).toBe(1);
  reporter.applied(meshWith([], [["a", [layer7]]]), report);
  expect(warnings()).toBe(2);
});

test("the status lists only services that have remarks", () => {
  const status = meshStatusOf(
    meshWith(
      [strict],
      [
        ["a", [layer7]],
        ["b", []],
      ],
    ),
  );
  expect(status.services).toBe(2);
  expect(status.notes).toEqual([strict]);
  expect(status.serviceNotes).toEqual([{ service: "a", notes: [layer7] }]);
  expect(meshStatusBefore(status)).toEqual({ ...status, current: false });
  expect(meshStatusBefore(undefined)).toMatchObject({ current: false, services: 0, notes: [] });
});

test("an istiod that stays away is told once, and again after it was back", () => {
  const { lines, log } = recorder();
  const reporter = new Reporter(log);
  const refuse = () =>
    reporter.heard({ kind: "disconnected", reason: "nothing listens", held: 0, retry: 100 });
  refuse();
  refuse();
  reporter.heard({ kind: "connected", target: "istiod:15012" });
  refuse();
  expect(lines.map((line) => line.split(" ")[0])).toEqual(["warn", "debug", "info", "warn"]);
});

test("a stream that held and ends is news, one that never stood is a warning", () => {
  const ended = (held: number) =>
    tell({ kind: "disconnected", reason: "istiod closed the stream", held, retry: 1500 });
  expect(ended(10)).toEqual(["info", "istiod closed the stream. Traffic continues; trying again"]);
  expect(ended(0)[0]).toBe("warn");
});

test("a certificate that can't be had is told once, and again after one was had", () => {
  const { lines, log } = recorder();
  const reporter = new Reporter(log);
  const failed = { kind: "failed", reason: "no token", expired: true, retry: 1 } as const;
  const obtained = {
    kind: "obtained",
    id: "spiffe://td/ns/a/sa/b",
    notAfter: 86_400_000,
    renewal: 43_200_000,
    proof: "token",
  } as const;
  for (const event of [failed, failed, obtained, failed]) reporter.onIdentity(event);
  reporter.onIdentity({ kind: "remark", reason: "others can read it" });
  const failure = "No new certificate: no token. Traffic continues; trying again";
  expect(lines).toEqual([
    `error ${failure}`,
    `debug ${failure}`,
    "info This machine is spiffe://td/ns/a/sa/b, by a new certificate (obtained with the token), until 1970-01-02T00:00:00Z; the next one is due at 1970-01-01T12:00:00Z",
    `error ${failure}`,
    "warn Others can read it",
  ]);
});

test("one line for a service manager", () => {
  const target = "istiod:15012";
  const agent = {
    adopted: false,
    shadow: false,
    stream: { target, connected: false, lastError: { at: 0, text: "connection refused" } },
    tables: { applies: 0, writes: 0 },
    mesh: meshStatusBefore(undefined),
  };
  type Known = Parameters<typeof formatOneLine>[0];
  const line = (more: object) => formatOneLine({ ...agent, ...more } as unknown as Known);
  const off = "istiod at istiod:15012 is not connected (connection refused)";
  expect(line({})).toBe(`Nothing is governed yet; ${off}`);
  expect(line({ adopted: true })).toBe(`Governing as the agent before did; ${off}`);
  const mesh = { ...meshStatusBefore(undefined), services: 3, endpoints: 4 };
  expect(line({ adopted: true, mesh })).toBe(`Governing 3 services, 4 endpoints; ${off}`);
  const stream = { target, connected: true };
  expect(line({ stream })).toBe("Nothing is governed yet; istiod's first push is coming");
  const live = { stream, mesh: { ...mesh, current: true }, tables: { applies: 1, writes: 1 } };
  expect(line(live)).toBe("Governing 3 services, 4 endpoints; in sync with istiod at istiod:15012");
  expect(line({ ...live, shadow: true })).toStartWith("Shadow mode. Governing 3");
});

test("what keeps the certificate away is told once, not again as the stream's", () => {
  const { lines, log } = recorder();
  const reporter = new Reporter(log);
  const reason = "the certificate expired, and istiod refuses the token: write a fresh one";
  reporter.onIdentity({ kind: "failed", reason, expired: true, retry: 100 });
  reporter.heard({ kind: "disconnected", reason, held: 0, retry: 100 });
  reporter.onIdentity({ kind: "failed", reason, expired: true, retry: 100 });
  expect(lines.filter((line) => !line.startsWith("debug"))).toEqual([
    `error No new certificate: ${reason}. Traffic continues; trying again`,
  ]);
});

test("an application's health is news when it changes", () => {
  const { lines, log } = recorder();
  const reporter = new Reporter(log);
  reporter.onHealth({ healthy: false, message: "HTTP status 503" });
  reporter.onHealth({ healthy: true, message: "" });
  expect(lines).toEqual([
    "warn The application is not healthy: HTTP status 503",
    "info The application is healthy",
  ]);
});
