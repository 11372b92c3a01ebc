/** Describes damage of kmesh's pins: the fault, its effect, and the repair. */
import { join } from "node:path";
import type { Hook } from "../../kernel/link.ts";
import { formatPinned, pinnedAt } from "../../kernel/pinned.ts";
import { generationsAt, UNKNOWN } from "../generation/generations.ts";
import { ownTable } from "../generation/pin-ownership.ts";
import { type PinFault, pinFaults } from "../generation/pin-repair.ts";
import { keptPin } from "../generation/pins.ts";
import { ChunkedTable } from "../tables/chunked-table.ts";
import * as layout from "../tables/layout.gen.ts";

export interface Damage {
  /** The damaged object. */
  what: string;
  consequence: string;
  cure: string;
}

/** The effect of a detached hook. */
const WITHOUT: Partial<Record<Hook, string>> = {
  sock_release: "ends of connections are not counted, so live counts only grow until it is back",
  getpeername4: "apps see the endpoint's IPv4 address instead of the service's",
  getpeername6: "apps see the endpoint's IPv6 address instead of the service's",
  connect4: "new IPv4 connections go where apps send them, past the mesh",
  connect6: "new IPv6 connections go where apps send them, past the mesh",
};

const RELINK =
  "`kmesh run` attaches it again, and an agent that runs within 5 s, or as soon as its programs govern; the other hooks are not touched";
const REPIN = "`kmesh run` pins them again, and an agent that runs within 5 s; no hook is touched";
const CLEAR =
  "`kmesh run` moves it to aside/ and puts its own there, and so does an agent that runs within 5 s";
const ANEW =
  "`kmesh down --yes`, then start the agent, which builds everything again; meanwhile new connections bypass the mesh";

/** The damage of the pins below `bpffs`; also [] when nothing is pinned. Changes nothing. Throws KernelError. */
export function damageAt(bpffs: string): Damage[] {
  return formatFaults(bpffs, pinFaults(bpffs, wasAttached(bpffs)));
}

/** The same for faults that were found already. Throws KernelError. */
export function formatFaults(bpffs: string, faults: readonly PinFault[]): Damage[] {
  const missing = faults.filter(
    ({ part, found, unreadable }) => part.kind !== "link" && !found && unreadable === undefined,
  );
  const isLost = ({ part, pin }: PinFault) => part.kind === "table" && !pin;
  const lost = missing.filter(isLost);
  const left = missing.filter((fault) => !isLost(fault));
  return [
    ...formatUnknown(bpffs),
    ...faults.flatMap(formatUnreadable),
    ...faults.flatMap((fault) => formatLink(fault) ?? []),
    ...faults.flatMap(({ path, part, found }) =>
      found && part.kind !== "link"
        ? [
            {
              what: `${path} is ${formatPinned(found)}, which is not kmesh's`,
              consequence: "connections are governed on; what belongs there is not pinned",
              cure: CLEAR,
            },
          ]
        : [],
    ),
    ...(left.length > 0
      ? [
          {
            what: `somebody removed ${left.map(({ path }) => path).join(", ")}`,
            consequence: "connections are governed on, until nothing else holds what was pinned there",
            cure: REPIN,
          },
        ]
      : []),
    ...(lost.length > 0
      ? [
          {
            what: `somebody removed ${lost.map(({ path }) => path).join(", ")}, and no program holds these maps`,
            consequence: "what is attached works on; but no agent can take it over",
            cure: ANEW,
          },
        ]
      : []),
  ];
}

function formatUnknown(bpffs: string): Damage[] {
  if (!generationsAt(bpffs).some(({ abi }) => abi === UNKNOWN)) return [];
  return [
    {
      what: `of the tables that connect() reads no pin is left in ${join(bpffs, "gen")}`,
      consequence: "connections stay governed; nothing can change or show these tables",
      cure: "`kmesh run` builds new ones beside them, which become live when they are complete",
    },
  ];
}

function formatUnreadable({ path, unreadable }: PinFault): Damage[] {
  if (unreadable === undefined) return [];
  return [
    {
      what: `what is pinned at ${path} can't be looked at: ${unreadable}`,
      consequence: "its state is unknown and unchanged; other pins are repaired",
      cure: "remove the obstacle; a running agent checks again within 5 s",
    },
  ];
}

function formatLink({ path, part, found, detached, pin, unreadable }: PinFault): Damage[] | undefined {
  if (part.kind !== "link" || unreadable !== undefined) return undefined;
  // An agent holds the link, so the hook is attached.
  if (pin)
    return [
      {
        what: found
          ? `${path} is ${formatPinned(found)}, which is not kmesh's`
          : `somebody removed the link ${path}`,
        consequence: `connections are governed on; but ${part.hook} is detached when the agent ends`,
        cure: found ? CLEAR : REPIN,
      },
    ];
  const trouble = detached
    ? `somebody detached the link ${path}`
    : found
      ? `${path} is ${formatPinned(found)}, which is not kmesh's`
      : `somebody removed the link ${path}`;
  return [
    { what: `${part.hook} is not attached: ${trouble}`, consequence: WITHOUT[part.hook] ?? "", cure: RELINK },
  ];
}

/** Whether hooks were ever attached: that happens when the tables first hold a mesh, and creates the folder. */
function wasAttached(bpffs: string): boolean {
  if (pinnedAt(join(bpffs, "links"))) return true;
  using map = ownTable(keptPin(bpffs, "cluster_names"), "cluster_names");
  if (map === undefined) return false;
  const table = new ChunkedTable(map, "cl_names", layout.name_ref.size);
  try {
    return table.capacity > 0;
  } finally {
    table.unmap();
  }
}
