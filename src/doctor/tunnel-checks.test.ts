import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { listenerStates } from "../machine/tunnel/sockets.ts";
import { certificateFinding, socketFinding, unitFindings } from "./tunnel-checks.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-doctor-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const HEAD = "  sl  local_address rem_address st tx rx tr when retrnsmt uid timeout inode\n";
function table(name: string, ...rows: [local: string, user: number][]): string {
  const path = join(folder, name);
  const text = rows.map(([local, user], i) => `${i}: ${local} 0:0 0A 0:0 00:0 0 ${user} 0 17\n`);
  writeFileSync(path, HEAD + text.join(""));
  return path;
}

test("sockets: those that listen, that are missing, and whose port is another program's", () => {
  const any6 = "0".repeat(32);
  const tcp4 = table("tcp4", ["00000000:3A99", 0], ["00000000:3A9E", 1337]);
  const tcp6 = table("tcp6", [`${any6}:3AA0`, 0]);
  const states = listenerStates({ tcp4, tcp6 });
  expect(states.map(({ state }) => state)).toEqual(["listens", "listens", "taken", "absent"]);
  const texts = states.flatMap(socketFinding).map(({ state, text }) => `${state}: ${text}`);
  expect(texts).toEqual([
    "error: port 15006 of the tunnel is another program's (user 1337)",
    "warning: nothing listens at port 15006 for the tunnel",
  ]);
  // Without IPv6 nothing is missing there.
  expect(listenerStates({ tcp4, tcp6: join(folder, "none") }).map(({ unit }) => unit)).not.toContain(
    "kmesh-tunnel-inbound6.socket",
  );
});

test("a certificate that ends soon, and one that has ended", () => {
  const life = { notBefore: 0, notAfter: 1_000_000 };
  const state = (now: number) => certificateFinding(life, now)[0]?.state;
  expect([state(600_000), state(760_000), state(1_000_001)]).toEqual([undefined, "warning", "error"]);
});

test("a service that crashes is told, also between two crashes; one that ended or never ran is not", () => {
  const told = (ActiveState: string, Result: string, ExecMainStatus: number, NRestarts: number) =>
    unitFindings(
      Object.entries({ ActiveState, Result, ExecMainStatus, NRestarts })
        .map((each) => `${each.join("=")}\n`)
        .join(""),
    ).map(({ state, text }) => `${state}: ${text}`);
  expect(told("inactive", "success", 0, 0)).toEqual([]);
  expect(told("active", "success", 0, 0)).toEqual([]);
  expect(unitFindings("")).toEqual([]);
  expect(told("activating", "exit-code", 1, 7)).toEqual([
    "error: kmesh-tunnel.service has ended with a fault (exit-code, status 1), and systemd has started it again 7 times: connections that need it wait or are reset",
  ]);
  expect(told("failed", "exit-code", 4, 0)[0]).toContain("ended with a fault (exit-code, status 4): conn");
  expect(told("active", "success", 0, 1)).toEqual([
    "warning: kmesh-tunnel.service runs, and systemd has started it again once: each crash has cut its connections",
  ]);
});
