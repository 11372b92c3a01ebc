import { expect, test } from "bun:test";
import { noCounters } from "../../test/page/documents.ts";
import type { Edge, EdgeCounters, EndpointNode, Node, ServiceNode } from "./model.ts";
import { findProblems } from "./problems.ts";

const unit: Node = {
  kind: "unit",
  id: "unit:shop.service",
  name: "shop.service",
  namespace: "",
  source: "unit",
};
const service: ServiceNode = {
  kind: "service",
  id: "service:cart.shop.svc.cluster.local:80",
  name: "cart",
  namespace: "shop",
  host: "cart.shop.svc.cluster.local",
  port: 80,
  endpoints: { known: 3, usable: 3, largestShare: 1 / 3 },
};
const single: ServiceNode = { ...service, endpoints: { known: 1, usable: 1, largestShare: 1 } };
const endpoint = (last: number, more: Partial<EndpointNode> = {}): EndpointNode => ({
  kind: "endpoint",
  id: `endpoint:10.0.0.${last}:8080`,
  name: `10.0.0.${last}:8080`,
  namespace: "",
  address: `10.0.0.${last}`,
  port: 8080,
  ...more,
});

function edge(
  kind: Edge["kind"],
  from: Node,
  to: Node,
  recent: Partial<EdgeCounters>,
  more: Partial<Edge> = {},
): Edge {
  return {
    id: `${from.id} -> ${to.id}`,
    from: from.id,
    to: to.id,
    kind,
    port: 0,
    total: noCounters(),
    recent: { ...noCounters(), ...recent },
    live: 0,
    rate: { opened: 0, failed: 0, sent: 0, received: 0 },
    failureShare: 0,
    state: "ok",
    ...more,
  };
}

const quiet = { rtt: new Map(), measured: new Map() };
const find = (
  edges: Edge[],
  nodes: Node[] = [unit, service, endpoint(1), endpoint(2), endpoint(3)],
  baseline: Parameters<typeof findProblems>[1] = quiet,
) => findProblems({ nodes, edges }, baseline);
const rules = (...args: Parameters<typeof find>) =>
  find(...args).map(({ rule, severity }) => `${rule} ${severity}`);
const failures = (more: Partial<EdgeCounters["failures"]>) => ({ ...noCounters().failures, ...more });
const healthy = { opened: 100, closed: 100, sent: 200_000, received: 300_000 };

test("healthy traffic has no problem", () => {
  const legs = [1, 2, 3].map((last) =>
    edge(
      "endpoint",
      service,
      endpoint(last),
      { ...healthy, retransmits: 3, failures: failures({ reset: 2 }) },
      { rtt: { mean: 300 + last } },
    ),
  );
  expect(find([edge("call", unit, service, { ...healthy, opened: 300 }), ...legs])).toEqual([]);
});

test("nothing at all has no problem", () => {
  expect(find([])).toEqual([]);
});

test("connects that fail, each with its reason", () => {
  const alone = [unit, single, endpoint(1)];
  const leg = (more: Partial<EdgeCounters["failures"]>) =>
    edge("endpoint", service, endpoint(1), { opened: 10, closed: 10, failures: failures(more), received: 1 });
  expect(rules([leg({ refused: 1 })], alone)).toEqual(["connect-refused warning"]);
  expect(rules([leg({ refused: 5 })], alone)).toEqual(["connect-refused error"]);
  expect(rules([leg({ timedOut: 9 })], alone)).toEqual(["connect-timeout error"]);
  expect(rules([leg({ unreachable: 4 })], alone)).toEqual(["unreachable warning"]);
  const [problem] = find([leg({ refused: 5 })], alone);
  expect(problem).toMatchObject({
    text: "5 of 10 connections to 10.0.0.1:8080 were refused by its host: nothing listens there",
    value: 5,
    next: "kmesh explain cart.shop.svc.cluster.local:80",
  });
});

test("resets count from three and five percent on", () => {
  const leg = (reset: number, closed: number) =>
    edge("endpoint", service, endpoint(1), {
      opened: closed,
      closed,
      sent: 1,
      received: 1,
      failures: failures({ reset }),
    });
  const alone = [unit, single, endpoint(1)];
  expect(rules([leg(2, 10)], alone)).toEqual([]);
  expect(rules([leg(3, 100)], alone)).toEqual([]);
  expect(rules([leg(5, 100)], alone)).toEqual(["reset warning"]);
  expect(rules([leg(60, 100)], alone)).toEqual(["reset error"]);
});

test("refused on purpose: by what it says", () => {
  const call = (reason: string) => edge("call", unit, service, { refused: { [reason]: 4 } });
  expect(rules([call("no-endpoint")])).toEqual(["no-endpoint error"]);
  expect(rules([call("no-family")])).toEqual(["no-endpoint error"]);
  expect(rules([call("max-connections")])).toEqual(["overloaded error"]);
  expect(rules([call("tls-required")])).toEqual(["refused-by-policy warning"]);
  expect(rules([call("policy")])).toEqual(["refused-by-policy warning"]);
});

test("nearly full", () => {
  const at = (live: number) => rules([], [{ ...service, limit: { live, most: 100 } }]);
  expect(at(89)).toEqual([]);
  expect(at(90)).toEqual(["overloaded warning"]);
});

test("lost packets: ten and two percent", () => {
  const leg = (retransmits: number, sent: number) =>
    edge("endpoint", service, endpoint(1), { opened: 1, closed: 1, sent, received: 1, retransmits });
  expect(rules([leg(9, 1000)])).toEqual([]);
  expect(rules([leg(10, 1_448_000)])).toEqual([]);
  expect(rules([leg(25, 1_448_000)])).toEqual(["retransmits warning"]);
});

test("slower than before: twice, by two milliseconds, over twenty connections", () => {
  const run = (mean: number, before: number, count: number) => {
    const leg = edge("endpoint", service, endpoint(1), { ...healthy }, { rtt: { mean } });
    const other = edge("endpoint", service, endpoint(2), { ...healthy });
    return rules([leg, other], undefined, {
      rtt: new Map([[leg.id, { mean: before, count }]]),
      measured: new Map([[leg.id, count]]),
    });
  };
  expect(run(4000, 1500, 20)).toEqual(["slower-than-before warning"]);
  expect(run(4000, 1500, 19)).toEqual([]);
  expect(run(2900, 1500, 20)).toEqual([]);
  expect(run(2000, 100, 20)).toEqual([]);
});

test("slower than its siblings", () => {
  const legs = [500, 600, 4000].map((mean, i) =>
    edge("endpoint", service, endpoint(i + 1), { ...healthy }, { rtt: { mean } }),
  );
  const measured = new Map(legs.map(({ id }) => [id, 10]));
  const found = find(legs, undefined, { rtt: new Map(), measured });
  expect(found.map(({ rule, subject }) => [rule, subject])).toEqual([
    ["slower-than-siblings", legs[2]?.id ?? ""],
  ]);
  // An endpoint on this machine and one in another zone.
  const near = [10, 1500].map((mean, i) =>
    edge("endpoint", service, endpoint(i + 1), { ...healthy }, { rtt: { mean } }),
  );
  expect(find(near, undefined, { rtt: new Map(), measured })).toEqual([]);
  // Two endpoints are siblings, too.
  expect(find(legs.slice(1), undefined, { rtt: new Map(), measured }).length).toBe(1);
});

test("ejected, alone, silent, outside", () => {
  expect(rules([], [endpoint(1, { ejected: 12 })])).toEqual(["ejected warning"]);
  const one = edge("endpoint", service, endpoint(1), { ...healthy });
  expect(rules([one])).toEqual(["alone warning"]);
  expect(
    rules([one], [{ ...service, endpoints: { known: 3, usable: 1, largestShare: 1 } }, endpoint(1)]),
  ).toEqual([]);
  expect(rules([{ ...one, recent: { ...one.recent, opened: 9 } }])).toEqual([]);
  // By the configuration: a hash of the source, weights of 99 to 1.
  for (const largestShare of [1, 0.99])
    expect(
      rules([one], [{ ...service, endpoints: { known: 3, usable: 3, largestShare } }, endpoint(1)]),
    ).toEqual([]);
  const pool = edge("endpoint", service, endpoint(2), {}, { live: 3 });
  expect(rules([one, pool])).toEqual([]);
  const silent = edge("endpoint", service, endpoint(1), { opened: 5, closed: 5, sent: 500 });
  expect(rules([silent])).toEqual(["no-answer warning"]);
  // A connection that is reset after it took bytes is named for that alone.
  expect(rules([{ ...silent, recent: { ...silent.recent, failures: failures({ reset: 5 }) } }])).toEqual([
    "reset error",
  ]);
  const outside: Node = {
    kind: "outside",
    id: "outside:PassthroughCluster",
    name: "PassthroughCluster",
    namespace: "",
  };
  expect(rules([edge("passed", unit, outside, { opened: 2 })], [unit, outside])).toEqual([
    "outside-mesh info",
  ]);
});

test("what fails in the tunnel is named by its reason, and its resets not again", () => {
  const carried = { by: "istio", mutualTls: true, principal: "" } as const;
  const recent = { opened: 10, closed: 10, sent: 1, received: 1, failures: failures({ reset: 6 }) };
  const call = edge("call", unit, service, { opened: 10 });
  const leg = edge("endpoint", service, endpoint(1), recent, { carried });
  const run = (count: number, reason = "wrong-san") =>
    find([call, leg], [unit, single, endpoint(1)], {
      ...quiet,
      tunnelFailures: new Map([["cart.shop.svc.cluster.local:80", new Map([[reason, count]])]]),
    });
  expect(run(6)).toEqual([
    {
      ...{ subject: service.id, rule: "tunnel", severity: "error", value: 6 },
      text: "6 of 10 connections to cart.shop failed in the tunnel: the peer proved another identity than the service has (wrong-san)",
      next: "kmesh explain cart.shop.svc.cluster.local:80",
    },
  ]);
  expect(run(4).map(({ rule, severity }) => `${rule} ${severity}`)).toEqual([
    "reset error",
    "tunnel warning",
  ]);
  expect(run(6, "no-certificate")[0]?.next).toBe("kmesh cert");
});

test("the worst stands first", () => {
  const legs = [
    edge("endpoint", service, endpoint(1), { ...healthy, failures: failures({ refused: 3 }) }),
    edge("endpoint", service, endpoint(2), { ...healthy, failures: failures({ timedOut: 90 }) }),
    edge("endpoint", service, endpoint(3), { ...healthy, failures: failures({ refused: 60 }) }),
  ];
  expect(find(legs).map(({ value }) => value)).toEqual([90, 60, 3]);
});
