import { AdminError } from "../../../admin/client.ts";
import type { ConfiguredEndpoint, Explained } from "../../../admin/explain.ts";
import { BadRequest } from "../../../admin/server.ts";
import { ActionableError } from "../../../errors/actionable-error.ts";
import type { InboundExplanation } from "../../../inbound/explain.ts";
import { formatMatch } from "../../../mesh/frontend.ts";
import { UsageError } from "../../framework/arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, indent, print, printJson, remark, table } from "../../framework/output.ts";
import { foldersOf, lastWords, view } from "../../framework/view.ts";

export const explain = command({
  name: "explain",
  about: "Show where a connection would go now, and why, by a dry run through the live tables",
  access: "reader",
  positionals: [
    { name: "destination", about: "HOST, HOST:PORT or IP:PORT", required: false, completes: "service" },
  ],
  flags: {
    from: {
      kind: "text",
      hint: "IP|PRINCIPAL",
      about:
        "explain whether this peer may connect: an address, or TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT[@IP]",
    },
    to: { kind: "text", hint: "PORT", about: "with --from: the port of this machine, or IP:PORT" },
    ...FOLDER_FLAGS,
    ...OUTPUT_FLAG,
  },
  examples: [
    ["explain shop.demo:80", "Show where a connection to a service would go"],
    ["explain 10.96.0.10:80 -o json", "Print the same for an address as JSON"],
    [
      "explain --from 10.0.0.7 --to 8080",
      "Show whether a peer may connect to this machine, and which rule decides",
    ],
  ],
  async run({ flags, positionals: [destination = ""] }) {
    const format = formatOf(flags);
    const folders = foldersOf(flags);
    const { from, to } = flags;
    const peer = typeof from === "string" && typeof to === "string" ? { from, to } : undefined;
    if (!peer && (from !== undefined || to !== undefined))
      throw new UsageError("--from and --to belong together", "kmesh explain --from 10.0.0.7 --to 8080");
    if ((destination === "") === (peer === undefined))
      throw new UsageError(
        "give a destination, or --from and --to",
        "kmesh explain HOST:PORT, or kmesh explain --from IP --to PORT",
      );
    if (peer) return explainInboundPeer(folders, peer, format);
    const path = `/explain?target=${encodeURIComponent(destination)}`;
    try {
      const { alive, value } = await view<Explained[]>(folders, path, async () => {
        const { explainDestination } = await import("../../../admin/explain.ts");
        return explainDestination(folders.bpffs, destination);
      });
      if (!alive) remark(`${lastWords(folders).sentence} The tables that it left decide.`);
      if (format === "json") printJson({ explanations: value });
      else print(value.map(formatExplanation).join("\n\n"));
      return EXIT.done;
    } catch (error) {
      throw told(error);
    }
  },
});

async function explainInboundPeer(
  folders: ReturnType<typeof foldersOf>,
  { from, to }: { from: string; to: string },
  format: ReturnType<typeof formatOf>,
): Promise<number> {
  const path = `/explain/inbound?from=${encodeURIComponent(from)}&to=${encodeURIComponent(to)}`;
  try {
    const { alive, value } = await view<{ inbound: InboundExplanation }>(folders, path, async () => {
      const { explainPeer } = await import("../../../admin/explain.ts");
      return explainPeer(folders, from, to);
    });
    if (!alive) remark(`${lastWords(folders).sentence} The policies that it left decide.`);
    if (format === "json") printJson(value);
    else print(formatPeer(value.inbound));
    return EXIT.done;
  } catch (error) {
    throw told(error);
  }
}

/** Formats the decision about an inbound connection. */
export function formatPeer({ from, to, decision, enforced, why }: InboundExplanation): string {
  const who = [from.principal, from.address].filter(Boolean).join(" at ");
  const where = to.address
    ? formatMatch({ kind: "address", address: to.address, port: to.port })
    : `port ${to.port}`;
  const verdict = decision.allowed || !enforced ? "is let in" : "is refused";
  return [
    `A connection from ${who} to ${where} ${verdict}`,
    ...why.map((line, i) => indent(`${i + 1}. ${line}`)),
  ].join("\n");
}

/** Prints an explanation. */
function told(error: unknown): unknown {
  // Compared by name, because the class is loaded only when the tables were read.
  if (error instanceof ActionableError && error.name === "NothingPinned")
    return new Failure(EXIT.agentNotRunning, error.message, error.next);
  const refused = error instanceof BadRequest || (error instanceof AdminError && error.status === 400);
  if (refused) return new Failure(EXIT.usage, (error as Error).message, "kmesh status lists the services.");
  return error;
}

const VERDICTS: Record<Explained["verdict"], string> = {
  redirect: "is sent to one of the endpoints below",
  pass: "goes to the address itself",
  refuse: "is refused",
};

/** Formats one explanation. */
export function formatExplanation(explanation: Explained): string {
  const { asked, verdict, reason, shadow, service, clusters, why } = explanation;
  const to = formatMatch({ kind: "address", ...asked });
  const counted = shadow ? " (shadow mode: that is only counted, nothing is changed)" : "";
  const head = `A connection to ${to} ${VERDICTS[verdict]}${reason ? `: ${reason}` : ""}${counted}`;
  const parts = [
    head,
    ...(service ? [`service ${service}`] : []),
    ...why.map((line, i) => `${i + 1}. ${line}`),
  ];
  const rows = clusters.flatMap((cluster) => endpointRows(cluster, explanation.configured?.[cluster.name]));
  const columns = [
    "CLUSTER",
    "ENDPOINT",
    "SHARE",
    "LIVE",
    "FAILED",
    "TAKES NEW",
    ...(explanation.configured ? ["WEIGHT", "PRIORITY", "HEALTH", "LOCALITY"] : []),
  ];
  const endpoints = rows.length === 0 ? [] : [indent(table(columns, rows))];
  return [head, ...[...parts.slice(1), ...endpoints].map((part) => indent(part))].join("\n");
}

/** One row for each endpoint: first those that get connections, then those that get none. */
function endpointRows(
  cluster: Explained["clusters"][number],
  configured: ConfiguredEndpoint[] | undefined,
): (string | number)[][] {
  const at = (endpoint: { address: string; port: number }) =>
    formatMatch({ kind: "address", address: endpoint.address, port: endpoint.port });
  const known = new Map(configured?.map((endpoint) => [at(endpoint), endpoint]));
  const details = (place: string) => {
    const endpoint = known.get(place);
    if (!endpoint) return configured ? ["-", "-", "-", ""] : [];
    return [
      endpoint.weight,
      endpoint.priority,
      endpoint.healthy ? "healthy" : "unhealthy",
      endpoint.locality,
    ];
  };
  const used = new Set(cluster.endpoints.map(at));
  return [
    ...cluster.endpoints.map((endpoint) => [
      cluster.name,
      at(endpoint),
      `${(endpoint.share * cluster.share * 100).toFixed(1)} %`,
      endpoint.live,
      endpoint.failed,
      endpoint.ejectedFor > 0 ? `no, for ${Math.ceil(endpoint.ejectedFor / 1000)} s` : "yes",
      ...details(at(endpoint)),
    ]),
    ...[...known.keys()]
      .filter((place) => !used.has(place))
      .map((place) => [cluster.name, place, "-", "-", "-", "-", ...details(place)]),
  ];
}
