import { describe, expect, test } from "bun:test";
import * as layout from "../../datapath/tables/layout.gen.ts";
import { parseAddress } from "../../mesh/address.ts";
import { Columns, type Rows, RowTable } from "../counters/row-table.ts";
import { type Counters, encodeCounters, type FlowKey, noCounters, viewOf } from "../counters/rows.ts";
import type { Sources } from "../counters/sources.ts";
import type { Labels } from "../labels.ts";
import { type LabelSet, labelSet, TEXT } from "./exposition.ts";
import { istioFamilies } from "./istio-metrics.ts";
import { Scrape } from "./scrape.ts";
import { MOST_PAIRS, OTHER, Tally } from "./tally.ts";

const self = {
  workload: "billing-vm",
  namespace: "vms",
  canonicalService: "billing",
  canonicalRevision: "latest",
  app: "billing",
  version: "",
  cluster: "Kubernetes",
  principal: "spiffe://cluster.local/ns/vms/sa/billing",
};
/** As istiod sends them: an endpoint with a workload, one without, a caller. */
const labels = {
  service: (id: number) =>
    ["", "ledger.shop.svc.cluster.local:80", "dead.shop.svc.cluster.local:80"][id] || undefined,
  workload: (id: number) => (id === 1 ? "ledger-v1;shop;ledger;;Kubernetes" : ";;;;Kubernetes"),
  caller: (address: string) => (address === "10.0.0.9" ? "frontend-v1;shop;frontend;v1;Kubernetes" : ""),
} as unknown as Labels;

const key = (more: Partial<FlowKey>): FlowKey => ({
  source: 5,
  direction: "out",
  port: 0,
  service: 1,
  cluster: 1,
  endpoint: 1,
  remote: "",
  ...more,
});
const counters = (more: Partial<Counters>, ends: number[] = []): Counters => {
  const all = { ...noCounters(), ...more };
  ends.forEach((count, i) => {
    all.ends[i] = count;
  });
  return all;
};
const DIRECTIONS = { out: 1, in: 2, refused: 3, passed: 4 } as const;
/** `struct flow_key`. */
function encodeKey({ source, direction, port, service, cluster, endpoint, remote }: FlowKey): Uint8Array {
  const bytes = new Uint8Array(layout.flow_key.size);
  const view = viewOf(bytes);
  const { fields } = layout.flow_key;
  view.setBigUint64(fields.source.offset, BigInt(source), true);
  view.setUint8(fields.direction.offset, DIRECTIONS[direction]);
  view.setUint16(fields.port.offset, port);
  if (direction === "in") {
    bytes.set(parseAddress(remote) ?? [], fields.remote.offset);
    return bytes;
  }
  view.setUint32(fields.service.offset, service, true);
  view.setUint32(fields.cluster.offset, cluster, true);
  view.setUint32(fields.endpoint.offset, endpoint, true);
  return bytes;
}
/** As the kernel gives them. */
const tableOf = (rows: [FlowKey, Counters][]): RowTable => {
  const keys = new Uint8Array(rows.length * layout.flow_key.size);
  const values = new Uint8Array(rows.length * layout.flow_row.size);
  rows.forEach(([each, sum], i) => {
    keys.set(encodeKey(each), i * layout.flow_key.size);
    encodeCounters(sum, viewOf(values), i * layout.flow_row.size);
  });
  return new RowTable({ keys, values, count: rows.length });
};
const reading = (rows: [FlowKey, Counters][], retired: Rows["retired"] = []): Rows => ({
  out: tableOf(rows.filter(([{ direction }]) => direction !== "in")),
  in: tableOf(rows.filter(([{ direction }]) => direction === "in")),
  retired,
  latency: new Columns({ keys: new Uint8Array(), values: new Uint8Array(), count: 0 }, 16, 384),
  other: { out: noCounters(), in: noCounters() },
  room: { rows: 1, callers: 1 },
});
const sources = { of: () => ({ kind: "unit", name: "shop.service" }) } as unknown as Sources;
const tally = (names: Labels) =>
  new Tally({
    labels: names,
    sources,
    self,
    inbound: (port) => (port === 9080 ? "billing.vms.svc.cluster.local:9080" : undefined),
  });
const familiesOf = (from: Rows, names = labels) => {
  const own = tally(names);
  own.take(from);
  return istioFamilies(own, "1");
};
const labelOf = ({ block }: LabelSet, name: string) =>
  new RegExp(`[{,]${name}="([^"]*)"`).exec(Buffer.from(block).toString())?.[1];
/** By family, the series whose labels have all of `wanted`. */
const find = (from: Rows, wanted: Record<string, string>) =>
  Object.fromEntries(
    familiesOf(from).map(({ name, sets, values }) => [
      name,
      sets.flatMap((set, i) =>
        Object.entries(wanted).every(([name, value]) => labelOf(set, name) === value) ? [values[i]] : [],
      ),
    ]),
  );

test("at the source, received is what our app sent", () => {
  const from = reading([[key({}), counters({ opened: 10, sent: 900, received: 400 }, [8])]]);
  expect(
    find(from, {
      reporter: "source",
      source_workload: "billing-vm",
      source_version: "unknown",
      destination_workload: "ledger-v1",
      destination_workload_namespace: "shop",
      destination_canonical_revision: "latest",
      destination_service_name: "ledger",
      destination_service_namespace: "shop",
      response_flags: "-",
    }),
  ).toMatchObject({
    istio_tcp_connections_opened: [10],
    istio_tcp_connections_closed: [8],
    istio_tcp_received_bytes: [900],
    istio_tcp_sent_bytes: [400],
  });
});

test("what the tunnel carries by mutual TLS has both principals, what it carries otherwise has none", () => {
  const from = reading([
    [key({ endpoint: 3 }), counters({ opened: 2 }, [2])],
    [key({ endpoint: 4 }), counters({ opened: 3 }, [3])],
    [key({ endpoint: 2 }), counters({ opened: 4 }, [4])],
  ]);
  const ways = ["", "", "", "istio spiffe://cluster.local/ns/shop/sa/ledger", "tls"];
  const carried = { ...labels, workload: (id: number) => `;;;;Kubernetes;${ways[id]}` } as unknown as Labels;
  const [opened] = familiesOf(from, carried);
  const names = ["source_principal", "destination_principal", "connection_security_policy"];
  const seen = opened?.sets.map((set, i) => [opened.values[i], ...names.map((name) => labelOf(set, name))]);
  expect(seen).toEqual([
    [2, self.principal, "spiffe://cluster.local/ns/shop/sa/ledger", "mutual_tls"],
    [3, "unknown", "unknown", "unknown"],
    [4, "unknown", "unknown", "unknown"],
  ]);
});

test("at the destination, received is what came in, and the caller is named", () => {
  const from = reading([
    [
      key({ direction: "in", remote: "10.0.0.9", port: 9080 }),
      counters({ opened: 3, sent: 70, received: 30 }, [3]),
    ],
  ]);
  expect(
    find(from, {
      reporter: "destination",
      source_workload: "frontend-v1",
      source_canonical_revision: "v1",
      destination_workload: "billing-vm",
      destination_service: "billing.vms.svc.cluster.local",
      destination_service_namespace: "vms",
      connection_security_policy: "none",
    }),
  ).toMatchObject({ istio_tcp_received_bytes: [30], istio_tcp_sent_bytes: [70] });
});

test("who called by mutual TLS has its principal, and this machine's own, apart from who called in plaintext", () => {
  const from = reading([
    [key({ direction: "in", remote: "ff00::5", port: 9080 }), counters({ opened: 2 }, [2])],
    [key({ direction: "in", remote: "ff00::1", port: 9080 }), counters({ opened: 5 }, [5])],
    [key({ direction: "in", remote: "10.0.0.9", port: 9080 }), counters({ opened: 3 }, [3])],
  ]);
  const callers: Record<string, string> = {
    "ff00::5": "frontend-v1;vms;frontend;v1;Kubernetes;hbone spiffe://cluster.local/ns/vms/sa/frontend",
    "ff00::1": ";;;;;istio",
  };
  const named = { ...labels, caller: (remote: string) => callers[remote] ?? "" } as unknown as Labels;
  const [opened] = familiesOf(from, named);
  const names = [
    ...["source_workload", "source_principal", "destination_principal", "connection_security_policy"],
  ];
  const seen = opened?.sets.map((set, i) => [opened.values[i], ...names.map((name) => labelOf(set, name))]);
  expect(seen).toEqual([
    [2, "frontend-v1", "spiffe://cluster.local/ns/vms/sa/frontend", self.principal, "mutual_tls"],
    [5, "unknown", "unknown", self.principal, "mutual_tls"],
    [3, "unknown", "unknown", "unknown", "none"],
  ]);
});

test("failed connects have the flag UF, refusals theirs, and all four series are there", () => {
  const from = reading([
    [key({ service: 2, endpoint: 2 }), counters({ opened: 5 }, [1, 2, 1, 1])],
    [key({ service: 2, direction: "refused", endpoint: 1 }), counters({ opened: 4 }, [4])],
    [key({ service: 0, direction: "passed", endpoint: 0 }), counters({ opened: 6 }, [6])],
  ]);
  const dead = {
    destination_service_name: "dead",
    destination_workload: "unknown",
    destination_service_namespace: "unknown",
  };
  expect(find(from, { ...dead, response_flags: "UF" })).toEqual({
    istio_tcp_connections_opened: [0],
    istio_tcp_connections_closed: [4],
    istio_tcp_received_bytes: [0],
    istio_tcp_sent_bytes: [0],
    istio_build: [],
  });
  expect(find(from, { ...dead, response_flags: "UH" }).istio_tcp_connections_opened).toEqual([4]);
  expect(find(from, { destination_service_name: "PassthroughCluster" }).istio_tcp_connections_opened).toEqual(
    [6],
  );
  // A service without resolution is named, as its cluster is in Envoy's metrics.
  const passed = reading([[key({ direction: "passed", endpoint: 0 }), counters({ opened: 6 }, [6])]]);
  expect(find(passed, { destination_service_name: "ledger" }).istio_tcp_connections_opened).toEqual([6]);
});

test("refusals whose row is gone keep their flag", () => {
  const refused = counters({ opened: 4 }, [4]);
  const gone = { id: "", source: 5, direction: "refused" as const, counters: refused };
  const service = "dead.shop.svc.cluster.local:80";
  const from = reading(
    [[key({ service: 2, direction: "refused", endpoint: 1 }), refused]],
    [
      { ...gone, service, workload: "no-endpoint" },
      { ...gone, service, workload: "" },
    ],
  );
  const opened = (response_flags: string) =>
    find(from, { destination_service_name: "dead", response_flags }).istio_tcp_connections_opened;
  expect([opened("UH"), opened("DENY")]).toEqual([[8], [4]]);
});

test("rows that are gone count on in the same series", () => {
  const row = counters({ opened: 2, sent: 5 }, [2]);
  const gone = {
    id: "",
    source: 5,
    direction: "out" as const,
    service: "ledger.shop.svc.cluster.local:80",
    workload: "ledger-v1;shop;ledger;;Kubernetes",
    counters: row,
  };
  expect(find(reading([[key({}), row]], [gone]), { destination_workload: "ledger-v1" })).toMatchObject({
    istio_tcp_connections_opened: [4],
    istio_tcp_received_bytes: [10],
  });
  const accepted = counters({ opened: 3, sent: 70, received: 30 }, [3]);
  const caller = { ...gone, direction: "in" as const, service: "9080", workload: labels.caller("10.0.0.9") };
  const live = key({ direction: "in", remote: "10.0.0.9", port: 9080 });
  const from = reading([[live, accepted]], [{ ...caller, counters: accepted }]);
  expect(find(from, { source_workload: "frontend-v1" })).toMatchObject({
    istio_tcp_connections_opened: [6],
    istio_tcp_received_bytes: [60],
    istio_tcp_sent_bytes: [140],
  });
  from.other.in = accepted;
  expect(
    find(from, { reporter: "destination", source_workload: "unknown" }).istio_tcp_connections_opened,
  ).toEqual([3]);
});

test("series are bounded: beyond it the workload is unknown, and nothing is lost", () => {
  const many = { ...labels, workload: (id: number) => `w${id};ns;w${id};;K` } as unknown as Labels;
  const rows = Array.from(
    { length: 10_500 },
    (_, i) => [key({ endpoint: i }), counters({ opened: 1 }, [1])] as [FlowKey, Counters],
  );
  const [opened] = familiesOf(reading(rows), many);
  expect(opened?.sets.length).toBe(10_001);
  expect([...Array.from(opened?.values ?? [])].reduce((sum, value) => sum + value, 0)).toBe(10_500);
});

test("pairs beyond the bound are added up as others", () => {
  const many = { ...labels, service: (id: number) => `svc-${id}:80` } as unknown as Labels;
  const own = tally(many);
  own.take(
    reading(
      Array.from({ length: MOST_PAIRS + 7 }, (_, i): [FlowKey, Counters] => [
        key({ service: i + 1 }),
        counters({ opened: i + 1, sent: 3 }, [i + 1]),
      ]),
    ),
  );
  const { pairs } = own;
  expect(pairs.used().length).toBe(MOST_PAIRS + 1);
  const last = pairs.used().at(-1) ?? 0;
  expect(labelOf(pairs.sets[last] ?? labelSet([]), "service")).toBe(OTHER);
  const value = (field: "opened" | "sent" | "end0") => pairs.column(field, [last])[0];
  const opened = Array.from({ length: 7 }, (_, i) => MOST_PAIRS + 1 + i).reduce((sum, each) => sum + each, 0);
  expect([value("opened"), value("end0"), value("sent")]).toEqual([opened, opened, 21]);
});

test("a scrape counts anew, and names that change move to their own series", () => {
  let name = "ledger-v1;shop;ledger;;Kubernetes";
  let revision = 0;
  const names = {
    service: () => "ledger.shop.svc.cluster.local:80",
    workload: () => name,
    get revision() {
      return revision;
    },
  } as unknown as Labels;
  const own = tally(names);
  const opened = (count: number) => {
    own.take(reading([[key({}), counters({ opened: count }, [0, count])]]));
    const [family] = istioFamilies(own, "1");
    return family?.sets.map((set, i) => [
      labelOf(set, "destination_workload"),
      labelOf(set, "response_flags"),
      family.values[i],
    ]);
  };
  expect(opened(3)).toEqual([
    ["ledger-v1", "-", 3],
    ["ledger-v1", "UF", 0],
  ]);
  expect(opened(5)?.[0]).toEqual(["ledger-v1", "-", 5]);
  name = "ledger-v2;shop;ledger;;Kubernetes";
  revision++;
  expect(opened(5)).toEqual([
    ["ledger-v2", "-", 5],
    ["ledger-v2", "UF", 0],
  ]);
});

describe("a scrape in pieces", () => {
  let revision = 0;
  let version = "v1";
  const names = {
    service: (id: number) => `svc-${id}:80`,
    workload: (id: number) => `w${id}-${version};ns;w${id};;K`,
    get revision() {
      return revision;
    },
  } as unknown as Labels;
  const rows = (opened: number) =>
    reading(
      Array.from({ length: 300 }, (_, i): [FlowKey, Counters] => [
        key({ endpoint: i }),
        counters({ opened }, [1]),
      ]),
    );
  const scrapes = () => {
    const own = tally(names);
    let reads = 0;
    const scrape = (opened: number) =>
      new Scrape({
        tally: own,
        revision: () => revision,
        read: () => {
          reads++;
          return rows(opened);
        },
        families: () => istioFamilies(own, "1"),
      });
    return { scrape, reads: () => reads };
  };
  const textOf = (parts: Iterable<Uint8Array>) => {
    let text = "";
    for (const part of parts) text += Buffer.from(part).toString();
    return text;
  };
  const openedOf = (text: string) =>
    [...text.matchAll(/^istio_tcp_connections_opened_total\{.*\} (\d+)$/gm)].map(([, value]) =>
      Number(value),
    );

  test("each of two at a time has its own numbers", () => {
    const { scrape } = scrapes();
    const first = scrape(3);
    const parts = first.parts(TEXT);
    expect(parts.next().value).toHaveLength(0);
    first.finish();
    const second = scrape(5);
    const other = second.parts(TEXT);
    other.next();
    expect(openedOf(textOf(parts))).toEqual(Array(300).fill(3));
    expect(openedOf(textOf(other))).toEqual(Array(300).fill(5));
  });

  test("names that change meanwhile are asked for again, and pushes that never end do not stop it", () => {
    const { scrape, reads } = scrapes();
    const parts = scrape(4).parts(TEXT);
    parts.next();
    version = "v2";
    revision++;
    const text = textOf(parts);
    expect(text).not.toContain("-v1");
    expect([openedOf(text).length, reads()]).toEqual([300, 2]);
    let more = "";
    for (const part of scrape(4).parts(TEXT)) {
      more += Buffer.from(part).toString();
      revision++;
    }
    expect([openedOf(more).length, reads()]).toEqual([300, 2 + 3]);
  });

  test("one that is stopped fails, unless it has its numbers", () => {
    const { scrape } = scrapes();
    const stopped = scrape(1);
    const parts = stopped.parts(TEXT);
    parts.next();
    stopped.stop(new Error("another agent has the tables"));
    expect(() => textOf(parts)).toThrow("another agent has the tables");
    const ended = scrape(1);
    ended.finish();
    ended.stop(new Error("too late"));
    expect(openedOf(textOf(ended.parts(TEXT)))).toHaveLength(300);
  });
});
