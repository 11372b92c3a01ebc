/**
 * Finds problems in one document. All rules are here, each is a pure function, and each uses only the window, except
 * "slower-than-before". Small numbers are ignored, so that healthy traffic gives no problem.
 *
 * | rule | what is seen | severity |
 * |---|---|---|
 * | connect-refused | a SYN was answered by a reset: 1 or more | error from half of the connects on, else warning |
 * | connect-timeout | nothing answered a SYN and its retry | the same |
 * | unreachable | an ICMP error, or no route | the same |
 * | reset | 3 or more established connections, and 5 % of those that ended, were reset by the peer | the same |
 * | no-endpoint | refused, because the service has no usable endpoint | error |
 * | refused-by-policy | refused, because policy, TLS or the registry demand it | warning |
 * | overloaded | refused at max_connections; or 90 % of them are in use | error; warning |
 * | retransmits | 10 or more, and 2 % of the segments that were sent (1,448 bytes each) | warning |
 * | slower-than-before | 20 connections or more, twice the round trip of the time before, and 2 ms more | warning |
 * | slower-than-siblings | 10 connections or more, twice the round trip of the service's median endpoint, and 2 ms more | warning |
 * | ejected | the kernel uses an endpoint no more for a while, because connects to it failed | warning |
 * | alone | 10 connections or more, all to one of several usable endpoints though the configured shares make that a chance of 1 in 1,000; no other one has live connections | warning |
 * | no-answer | 3 or more connections ended without a failure, bytes went out, none came back | warning |
 * | tunnel | connections to a service failed in the tunnel, by reason: 1 or more. Resets that are these failures are not named again | error from half of the service's connects on, else warning |
 * | outside-mesh | connections that go to no endpoint of the mesh | info |
 */
import type { Edge, EdgesDocument, EndpointNode, Node, Problem, Rule, ServiceNode } from "./model.ts";
import type { TunnelFailures } from "./tunnel-summary.ts";

/** Inputs of rules beyond the document. */
export interface Baseline {
  /** Mean least round trip before the window, microseconds, over that many connections. */
  rtt: ReadonlyMap<string, { mean: number; count: number }>;
  /** The number of connections of the window that measured a round trip. */
  measured: ReadonlyMap<string, number>;
  /** Failures in the tunnel, of the window. */
  tunnelFailures?: TunnelFailures;
}

const LIMITS = {
  resets: 3,
  resetShare: 0.05,
  retransmits: 10,
  retransmitShare: 0.02,
  segment: 1448,
  slowFactor: 2,
  slowUs: 2000,
  beforeCount: 20,
  siblingCount: 10,
  aloneCount: 10,
  aloneChance: 0.001,
  silentCount: 3,
  fullShare: 0.9,
} as const;

type Document = Pick<EdgesDocument, "nodes" | "edges">;

/** All problems, worst first: by severity, then by the number of affected connections, then by name. */
export function findProblems(document: Document, baseline: Baseline): Problem[] {
  const nodes = new Map(document.nodes.map((node) => [node.id, node]));
  const problems = [
    ...document.edges.flatMap((edge) => [
      ...failedConnects(edge, nodes),
      ...(explains(baseline.tunnelFailures, edge, nodes) ? [] : resets(edge, nodes)),
      ...refusals(edge, nodes),
      ...retransmits(edge, nodes),
      ...slowerThanBefore(edge, nodes, baseline),
      ...noAnswer(edge, nodes),
      ...outsideMesh(edge, nodes),
    ]),
    ...document.nodes.flatMap((node) => [
      ...(node.kind === "endpoint" ? ejected(node) : []),
      ...(node.kind === "service" ? full(node) : []),
      ...(node.kind === "service" ? alone(node, document) : []),
      ...(node.kind === "service" ? inTunnel(node, document, baseline.tunnelFailures) : []),
      ...(node.kind === "service" ? slowerThanSiblings(node, document, nodes, baseline) : []),
    ]),
  ];
  const rank = { error: 0, warning: 1, info: 2 };
  return problems.sort(
    (a, b) => rank[a.severity] - rank[b.severity] || b.value - a.value || (a.subject < b.subject ? -1 : 1),
  );
}

type Nodes = ReadonlyMap<string, Node>;

/** Failures of "endpoint" edges, which name the place: an edge of a unit has the same failures. */
function failedConnects(edge: Edge, nodes: Nodes): Problem[] {
  if (edge.kind !== "endpoint") return [];
  const { failures, opened } = edge.recent;
  const where = nameOf(nodes, edge.to);
  const of = Math.max(opened, failures.refused + failures.timedOut + failures.unreachable);
  const one = (rule: Rule, count: number, what: string, next: string): Problem[] =>
    count === 0
      ? []
      : [
          {
            subject: edge.id,
            rule,
            severity: count * 2 >= of ? "error" : "warning",
            text: `${count} of ${of} connections to ${where} ${what}`,
            value: count,
            next,
          },
        ];
  return [
    ...one(
      "connect-refused",
      failures.refused,
      "were refused by its host: nothing listens there",
      explain(nodes, edge.from),
    ),
    ...one(
      "connect-timeout",
      failures.timedOut,
      "got no answer: the host is gone, or a firewall drops them",
      explain(nodes, edge.from),
    ),
    ...one(
      "unreachable",
      failures.unreachable,
      "could not be sent: there is no route, or a router says so",
      `ip route get ${addressOf(nodes, edge.to)}`,
    ),
  ];
}

function resets(edge: Edge, nodes: Nodes): Problem[] {
  if (edge.kind !== "endpoint" && edge.kind !== "inbound") return [];
  const { failures, closed } = edge.recent;
  const share = closed === 0 ? 0 : failures.reset / closed;
  if (failures.reset < LIMITS.resets || share < LIMITS.resetShare) return [];
  const inbound = edge.kind === "inbound";
  return [
    {
      subject: edge.id,
      rule: "reset",
      severity: share >= 0.5 ? "error" : "warning",
      text: `${failures.reset} of ${closed} connections ${inbound ? "from" : "to"} ${nameOf(nodes, inbound ? edge.from : edge.to)} were reset after they were established`,
      value: failures.reset,
      next: inbound ? "kmesh log --failures" : explain(nodes, edge.from),
    },
  ];
}

const NO_ENDPOINT = ["no-endpoint", "no-family", "missing-cluster", "other-netns"];
const FULL = "max-connections";

function refusals(edge: Edge, nodes: Nodes): Problem[] {
  if (edge.kind !== "call") return [];
  return Object.entries(edge.recent.refused).flatMap(([reason, count]): Problem[] => {
    if (count === 0) return [];
    const who = nameOf(nodes, edge.from);
    const what = nameOf(nodes, edge.to);
    const next = explain(nodes, edge.to);
    const base = { subject: edge.id, value: count, next };
    const refused = `${count} ${count === 1 ? "connection" : "connections"} of ${who} to ${what} ${count === 1 ? "was" : "were"} refused`;
    if (NO_ENDPOINT.includes(reason))
      return [
        {
          ...base,
          rule: "no-endpoint",
          severity: "error",
          text: `${refused}: it has no endpoint that is healthy and reachable${reason === "no-endpoint" ? "" : ` (${reason})`}`,
        },
      ];
    if (reason === FULL)
      return [
        {
          ...base,
          rule: "overloaded",
          severity: "error",
          text: `${refused}: as many as its max_connections are open`,
        },
      ];
    return [
      {
        ...base,
        rule: "refused-by-policy",
        severity: "warning",
        text: `${refused} on purpose (${reason})`,
      },
    ];
  });
}

function full({ id, name, limit, host, port }: ServiceNode): Problem[] {
  if (!limit || limit.live < limit.most * LIMITS.fullShare) return [];
  return [
    {
      subject: id,
      rule: "overloaded",
      severity: "warning",
      text: `${limit.live} of at most ${limit.most} connections to ${name} are in use`,
      value: limit.live,
      next: `kmesh explain ${host}:${port}`,
    },
  ];
}

function retransmits(edge: Edge, nodes: Nodes): Problem[] {
  if (edge.kind !== "endpoint" && edge.kind !== "inbound") return [];
  const { retransmits: count, opened } = edge.recent;
  const bytes = edge.kind === "inbound" ? edge.recent.received : edge.recent.sent;
  // The handshake and the end of a connection are segments, too.
  const segments = Math.ceil(bytes / LIMITS.segment) + 3 * opened + count;
  const share = count / Math.max(1, segments);
  if (count < LIMITS.retransmits || share < LIMITS.retransmitShare) return [];
  const peer = nameOf(nodes, edge.kind === "inbound" ? edge.from : edge.to);
  return [
    {
      subject: edge.id,
      rule: "retransmits",
      severity: "warning",
      text: `${count} segments to ${peer} had to be sent again, about ${percent(share)} of them: packets are lost on the way`,
      value: count,
      next: `ping -c 20 ${addressOf(nodes, edge.kind === "inbound" ? edge.from : edge.to)}`,
    },
  ];
}

function slowerThanBefore(edge: Edge, nodes: Nodes, { rtt, measured }: Baseline): Problem[] {
  const before = rtt.get(edge.id);
  if (edge.kind !== "endpoint" || !edge.rtt || !before) return [];
  if (before.count < LIMITS.beforeCount || (measured.get(edge.id) ?? 0) < LIMITS.beforeCount) return [];
  const { mean } = edge.rtt;
  if (mean < before.mean * LIMITS.slowFactor || mean - before.mean < LIMITS.slowUs) return [];
  return [
    {
      subject: edge.id,
      rule: "slower-than-before",
      severity: "warning",
      text: `the round trip to ${nameOf(nodes, edge.to)} is ${ms(mean)}, and was ${ms(before.mean)} before`,
      value: mean,
      next: `kmesh topology --since 1h`,
    },
  ];
}

function slowerThanSiblings(
  service: ServiceNode,
  { edges }: Document,
  nodes: Nodes,
  { measured }: Baseline,
): Problem[] {
  const own = edges.filter(
    (edge) => edge.from === service.id && edge.rtt && (measured.get(edge.id) ?? 0) >= LIMITS.siblingCount,
  );
  if (own.length < 2) return [];
  return own.flatMap((edge): Problem[] => {
    const others = own.filter((other) => other !== edge).map(({ rtt }) => rtt?.mean ?? 0);
    const median = others.sort((a, b) => a - b)[Math.floor((others.length - 1) / 2)] ?? 0;
    const mean = edge.rtt?.mean ?? 0;
    if (mean < median * LIMITS.slowFactor || mean - median < LIMITS.slowUs) return [];
    return [
      {
        subject: edge.id,
        rule: "slower-than-siblings",
        severity: "warning",
        text: `the round trip to ${nameOf(nodes, edge.to)} is ${ms(mean)}, to the other endpoints of ${service.name} ${ms(median)}`,
        value: mean,
        next: `ping -c 20 ${addressOf(nodes, edge.to)}`,
      },
    ];
  });
}

function ejected({ id, name, address, port, ejected: seconds }: EndpointNode): Problem[] {
  if (seconds === undefined) return [];
  return [
    {
      subject: id,
      rule: "ejected",
      severity: "warning",
      text: `${name} (${address} port ${port}) is left out for ${seconds} s more, since connects to it failed in a row`,
      value: seconds,
      next: `kmesh status`,
    },
  ];
}

function alone(service: ServiceNode, { edges }: Document): Problem[] {
  if (!service.endpoints || service.endpoints.usable < 2) return [];
  // An endpoint with live connections takes part, even if least-request gives it no new ones.
  const used = edges.filter(({ from, recent, live }) => from === service.id && recent.opened + live > 0);
  const [only] = used;
  if (used.length !== 1 || !only || only.recent.opened < LIMITS.aloneCount) return [];
  // The first connection may use any endpoint.
  if (service.endpoints.largestShare ** (only.recent.opened - 1) > LIMITS.aloneChance) return [];
  return [
    {
      subject: only.id,
      rule: "alone",
      severity: "warning",
      text: `all ${only.recent.opened} connections to ${service.name} went to one of ${service.endpoints.usable} usable endpoints`,
      value: only.recent.opened,
      next: `kmesh explain ${service.host}:${service.port}`,
    },
  ];
}

function noAnswer(edge: Edge, nodes: Nodes): Problem[] {
  if (edge.kind !== "endpoint") return [];
  const { closed, sent, received, failures } = edge.recent;
  // A reset connection has its own rule.
  const failed = failures.refused + failures.timedOut + failures.unreachable + failures.reset;
  if (closed - failed < LIMITS.silentCount || sent === 0 || received > 0) return [];
  return [
    {
      subject: edge.id,
      rule: "no-answer",
      severity: "warning",
      text: `${nameOf(nodes, edge.to)} took ${sent} bytes over ${closed - failed} connections and answered none`,
      value: closed - failed,
      next: explain(nodes, edge.from),
    },
  ];
}

const TUNNEL_WORDS: Readonly<Record<string, string>> = {
  "no-certificate": "this machine has no certificate of the mesh",
  "own-certificate-expired": "this machine's certificate has expired",
  "connect-refused": "the peer's host refused them: nothing listens there",
  "connect-timeout": "the peer did not answer",
  unreachable: "there is no route to the peer",
  "unknown-ca": "the peer's certificate is of no root of the mesh",
  "wrong-san": "the peer proved another identity than the service has",
  expired: "the peer's certificate has expired",
  "not-yet-valid": "the peer's certificate is not valid yet",
  "no-peer-certificate": "the peer showed no certificate",
  "no-alpn": "the peer speaks another protocol than the mesh's",
  "not-tls": "the peer does not speak TLS",
  "handshake-timeout": "the peer did not finish the handshake",
  "refused-by-peer": "the peer refused this machine's certificate",
  "denied-by-peer": "the peer's policy denied them",
  "peer-unavailable": "the peer could not reach its app",
  overload: "the tunnel had too many connections",
};

function inTunnel(
  service: ServiceNode,
  { edges }: Document,
  failures: TunnelFailures | undefined,
): Problem[] {
  const reasons = failures?.get(`${service.host}:${service.port}`);
  if (!reasons) return [];
  const calls = edges.filter(({ kind, to }) => kind === "call" && to === service.id);
  const opened = calls.reduce((sum, { recent }) => sum + recent.opened, 0);
  return [...reasons].map(([reason, count]): Problem => {
    const why = TUNNEL_WORDS[reason] ?? "the connection to the peer broke";
    const of = count > opened ? `${count}` : `${count} of ${opened}`;
    return {
      subject: service.id,
      rule: "tunnel",
      severity: count * 2 >= opened ? "error" : "warning",
      text: `${of} connections to ${service.name}${service.namespace === "" ? "" : `.${service.namespace}`} failed in the tunnel: ${why} (${reason})`,
      value: count,
      next: OURS.includes(reason) ? "kmesh cert" : `kmesh explain ${service.host}:${service.port}`,
    };
  });
}

/** Reasons whose cause is on this machine. */
const OURS = ["no-certificate", "own-certificate-expired"];

/** Whether an edge's resets are failures of the tunnel: it resets the app's connection, which is all that the kernel sees. */
function explains(failures: TunnelFailures | undefined, edge: Edge, nodes: Nodes): boolean {
  const service = nodes.get(edge.from);
  if (!edge.carried || service?.kind !== "service") return false;
  const reasons = failures?.get(`${service.host}:${service.port}`);
  const failed = [...(reasons?.values() ?? [])].reduce((sum, count) => sum + count, 0);
  return failed > 0 && failed >= edge.recent.failures.reset;
}

function outsideMesh(edge: Edge, nodes: Nodes): Problem[] {
  if (edge.kind !== "passed" || edge.recent.opened === 0) return [];
  return [
    {
      subject: edge.id,
      rule: "outside-mesh",
      severity: "info",
      text: `${nameOf(nodes, edge.from)} made ${edge.recent.opened} connections that go to no endpoint of the mesh (${nameOf(nodes, edge.to)})`,
      value: edge.recent.opened,
      next: `kmesh log --follow`,
    },
  ];
}

function nameOf(nodes: Nodes, id: string): string {
  const node = nodes.get(id);
  if (!node) return id;
  if (node.kind === "endpoint" && node.workload) return `${node.name} (${node.address} port ${node.port})`;
  if (node.kind === "service" && node.namespace !== "") return `${node.name}.${node.namespace}`;
  return node.name;
}

function addressOf(nodes: Nodes, id: string): string {
  const node = nodes.get(id);
  return node && "address" in node ? node.address : id;
}

function explain(nodes: Nodes, id: string): string {
  const node = nodes.get(id);
  return node?.kind === "service" && node.port > 0
    ? `kmesh explain ${node.host}:${node.port}`
    : "kmesh status";
}

function percent(share: number): string {
  return `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
}

function ms(us: number): string {
  return us < 10_000 ? `${(us / 1000).toFixed(2)} ms` : `${(us / 1000).toFixed(0)} ms`;
}
