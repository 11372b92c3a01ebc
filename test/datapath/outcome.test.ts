/** How a connect() went is read from the socket when it ends or connects again. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { openPinned } from "../../src/datapath/inspect/inspect.ts";
import { readEndpoint } from "../../src/datapath/mesh-tables/endpoint-table.ts";
import * as layout from "../../src/datapath/tables/layout.gen.ts";
import type { Tables } from "../../src/datapath/tables/tables.ts";
import { monotonic } from "../../src/kernel/clock.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, output, placed } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("outcome tests are skipped: they need root");

const { fields } = layout.endpoint_load;
/** Endpoints, by what becomes of a connection to them: of IPv4, of IPv6. */
const ENDPOINTS = {
  open: ["172.31.1.1:8080", "[fd00:31::1]:8080"],
  own: ["172.31.1.1:8082", "[fd00:31::1]:8082"],
  closed: ["172.31.1.1:9", "[fd00:31::1]:9"],
  // On a link where nobody takes what is sent to it.
  silent: ["172.31.8.8:80", "[fd00:8::8]:80"],
  away: ["198.51.100.1:80", "[2001:db8:9::1]:80"],
  // On a link where nobody answers for it.
  dead: ["172.31.8.9:80", "[fd00:8::9]:80"],
  // Another program at the same hook says no.
  denied: ["172.31.1.1:8083", "[fd00:31::1]:8083"],
} as const;
type Kind = keyof typeof ENDPOINTS;
type Outcome = "connected" | "failed" | "failed twice" | "unknown";

const CASES: readonly [way: string, kind: Kind, outcome: Outcome][] = [
  ["plain", "open", "connected"],
  ["nonblocking", "open", "connected"],
  ["reset-by-app", "open", "connected"],
  ["reset-by-peer", "own", "connected"],
  ["reset-by-peer-and-read", "own", "connected"],
  ["ended-by-both", "own", "connected"],
  ["ended-by-peer", "own", "connected"],
  ["half-ended", "own", "connected"],
  ["unspecified", "open", "connected"],
  ["unspecified-and-read", "open", "connected"],
  ["then-elsewhere", "open", "connected"],
  ["fast-open", "open", "connected"],
  ["fast-open-deferred", "open", "connected"],
  ["forked", "open", "connected"],
  ["refused", "closed", "failed"],
  ["refused-nonblocking", "closed", "failed"],
  ["refused-and-read", "closed", "failed"],
  ["refused-twice", "closed", "failed twice"],
  ["refused-then-elsewhere", "closed", "failed"],
  ["refused-forked", "closed", "failed"],
  ["refused-unspecified", "closed", "failed"],
  ["refused-fast-open", "closed", "failed"],
  ["refused-fast-open-deferred", "closed", "failed"],
  ["timed-out", "silent", "failed"],
  ["timed-out-and-read", "silent", "failed"],
  ["given-up-early", "silent", "unknown"],
  ["given-up-late", "silent", "failed"],
  ["send-timeout", "silent", "failed"],
  ["shut-down-early", "silent", "unknown"],
  ["unspecified-early", "silent", "unknown"],
  ["unreachable", "away", "unknown"],
  ["no-answer-on-the-link", "dead", "failed"],
  ["address-in-use", "open", "unknown"],
  ["address-in-use-again", "open", "unknown"],
  ["denied", "denied", "unknown"],
];

const ROW = 3;

describe.skipIf(!root)("the outcome of a connect", () => {
  let lab: DatapathLab;
  let other: DatapathLab;
  let neighbour: NetworkNamespace;
  let tables: Tables;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({
      v4: ENDPOINTS.open[0],
      v6: ENDPOINTS.open[1],
      ...{ near4: "127.0.0.1:8081", near6: "[::1]:8081", far4: "172.31.1.1:8081", far6: "[fd00:31::1]:8081" },
    });
    const { namespace } = lab;
    neighbour = await NetworkNamespace.create("nb");
    await namespace.connect(neighbour, ["172.31.8.1/24", "fd00:8::1/64"], []);
    const shown = await output(["ip", "-n", namespace.name, "-o", "addr", "show", "to", "172.31.8.1"]);
    const [, device = ""] = /^\d+: (\S+)/.exec(shown) ?? [];
    for (const address of ["172.31.8.8", "fd00:8::8"])
      await namespace.ip(
        "neigh",
        "add",
        address,
        "lladdr",
        "02:00:00:00:00:09",
        "dev",
        device,
        "nud",
        "permanent",
      );
    const mesh = emptyMesh();
    for (const [i, [kind, ends]] of Object.entries(ENDPOINTS).entries()) {
      addCluster(
        mesh,
        kind,
        ends.map((at) => endpoint(at)),
      );
      addFrontend(mesh, frontend4(i), { kind: "cluster", cluster: kind });
      addFrontend(mesh, frontend6(i), { kind: "cluster", cluster: kind });
    }
    lab.publish(mesh);
    tables = openPinned(lab.bpffs);
    other = await DatapathLab.create({ cgroups: [lab.cgroup] });
    const denials = emptyMesh();
    for (const at of ENDPOINTS.denied) addFrontend(denials, at, { kind: "refuse", reason: "policy" });
    other.publish(denials);
  });
  afterAll(async () => {
    tables?.close();
    await other?.remove();
    await lab?.remove();
    await neighbour?.remove();
  });

  const frontend4 = (i: number) => `10.96.8.${i + 1}:80`;
  const frontend6 = (i: number) => `[2001:2::8:${i + 1}]:80`;

  function idOf(at: string): number {
    const wanted = endpoint(at);
    for (let id = 0; id < tables.endpoints.capacity; id++) {
      const { address, port } = readEndpoint(tables, id);
      if (address === wanted.address && port === wanted.port) return id;
    }
    throw new Error(`${at} has no id`);
  }

  describe.each([
    ["IPv4", 0],
    ["IPv6", 1],
  ] as const)("%s", (_, family) => {
    test.each(CASES)("%s (%s): %s", async (way, kind, outcome) => {
      const at = ENDPOINTS[kind][family];
      const id = idOf(at);
      const loads = tables.endpointLoads;
      const failed = () => Number(loads.long(id, fields.failed.offset));
      const before = failed();
      // As if some had failed until now.
      loads.publish(id, monotonic(), fields.ejected_until_ns.offset);
      loads.setWord(id, fields.failures.offset, ROW);
      const index = Object.keys(ENDPOINTS).indexOf(kind);
      const asked = endpoint((family === 0 ? frontend4 : frontend6)(index));
      const script = join(import.meta.dirname, "outcomes.py");
      const client = new RunningClient(
        placed(["/usr/bin/python3", script, way, asked.address, "80", "8081", at.replace(/[[\]]/g, "")], {
          netns: lab.namespace.path,
          cgroup: lab.cgroup,
        }),
      );
      try {
        expect(await client.line()).toBe("done");
        const row = loads.word(id, fields.failures.offset);
        const more = failed() - before;
        const found = { connected: row === 0 && more === 0, failed: more };
        expect(found).toEqual({
          connected: outcome === "connected",
          failed: outcome === "failed" ? 1 : outcome === "failed twice" ? 2 : 0,
        });
        if (outcome === "unknown") expect(row).toBe(ROW);
      } finally {
        client.kill();
      }
      await eventually("it lives no more", () => loads.count(id, fields.live.offset) === 0);
    });
  });
});
