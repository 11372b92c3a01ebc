/** Connects to the endpoints of a destination. The mesh must not govern this process. */
import { connect } from "node:net";
import type { Explained } from "../admin/explain.ts";
import { codeOf, reasonOf } from "../errors/reason.ts";

/** Time limit of one connection, milliseconds. */
const PATIENCE = 3_000;
/** Concurrent connections. */
const AT_ONCE = 32;
/** Most endpoints that are tried for one destination. */
export const MOST = 1_000;

/** One endpoint and the result. */
export interface Attempt {
  /** "" when the mesh passes the address unchanged. */
  cluster: string;
  address: string;
  port: number;
  /** Share of the connections to the destination, 0 to 1. */
  share: number;
  /** Milliseconds until its ejection ends; 0 without an ejection. */
  ejectedFor: number;
  state: "ok" | "error";
  /** Duration of the connect, milliseconds. */
  milliseconds: number;
  /** The error and the next step. */
  error?: { code: string; text: string; cure: string };
}

/** One address and port, the kernel's decision for a connection to it, and the results of its endpoints. */
export interface Trial {
  explanation: Explained;
  endpoints: Attempt[];
  /** Endpoints beyond the limit, which were not tried. */
  left: number;
}

/** Connects to each endpoint that a connection could get now, or to the address itself when the mesh passes it. */
export async function tryEndpoints(explanation: Explained): Promise<Trial> {
  const { verdict, asked, clusters } = explanation;
  const direct = { cluster: "", ...asked, share: 1, ejectedFor: 0 };
  const places =
    verdict === "refuse"
      ? []
      : verdict === "pass"
        ? [direct]
        : clusters.flatMap((cluster) =>
            cluster.endpoints.map(({ address, port, share, ejectedFor }) => ({
              cluster: cluster.name,
              address,
              port,
              share: share * cluster.share,
              ejectedFor,
            })),
          );
  const tried = places.slice(0, MOST);
  const endpoints: Attempt[] = [];
  for (let i = 0; i < tried.length; i += AT_ONCE)
    endpoints.push(
      ...(await Promise.all(
        tried
          .slice(i, i + AT_ONCE)
          .map(async (place) => ({ ...place, ...(await attempt(place.address, place.port)) })),
      )),
    );
  return { explanation, endpoints, left: places.length - tried.length };
}

/** Whether a connection can fail now: the mesh refuses it, or an endpoint that gets connections does not answer. */
export function isFaulty({ explanation, endpoints }: Trial): boolean {
  return explanation.verdict === "refuse" || endpoints.some(({ state }) => state === "error");
}

function attempt(address: string, port: number): Promise<Pick<Attempt, "state" | "milliseconds" | "error">> {
  const began = performance.now();
  const took = () => Math.round((performance.now() - began) * 10) / 10;
  return new Promise((resolve) => {
    const socket = connect({ host: address, port });
    const timer = setTimeout(() => finish(new Error("timeout")), PATIENCE);
    const finish = (fault?: Error) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(
        fault === undefined
          ? { state: "ok", milliseconds: took() }
          : { state: "error", milliseconds: took(), error: explain(fault) },
      );
    };
    socket.once("connect", () => finish());
    socket.once("error", finish);
  });
}

const CAUSES: Readonly<Record<string, [text: string, cure: string]>> = {
  ECONNREFUSED: ["nothing listens there", "See that the application runs, and at that port."],
  ECONNRESET: ["it resets the connection", "See the application's log, and what stands before it."],
  EHOSTUNREACH: [
    "the machine does not answer",
    "See that it runs, and that its network is this machine's neighbour or routed.",
  ],
  ENETUNREACH: [
    "there is no route",
    "See ip route get ADDRESS: a network of the mesh that this machine can't reach?",
  ],
  ETIMEDOUT: ["no answer", "A firewall drops it, or the machine is down."],
  EPERM: ["this machine refuses it", "See nft list ruleset, and what else is attached to the cgroup."],
  EACCES: ["this machine refuses it", "See nft list ruleset, and what else is attached to the cgroup."],
  EADDRNOTAVAIL: ["no local port is free", "See sysctl net.ipv4.ip_local_port_range, and ss -s."],
};

function explain(fault: Error): NonNullable<Attempt["error"]> {
  const code = fault.message === "timeout" ? "ETIMEDOUT" : (codeOf(fault) ?? "");
  const [text, cure] = CAUSES[code] ?? [reasonOf(fault), ""];
  return { code, text: code === "ETIMEDOUT" ? `no answer within ${PATIENCE / 1000} s` : text, cure };
}
