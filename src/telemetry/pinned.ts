/** The map without an agent, from the pins: totals since the counters began, and no history. */
import { hostname } from "node:os";
import { openPinned } from "../datapath/inspect/inspect.ts";
import { readTraffic } from "./counters/reading.ts";
import { Sources } from "./counters/sources.ts";
import { makeDocument, totalsFor } from "./edges.ts";
import { History } from "./history.ts";
import { Labels } from "./labels.ts";
import type { EdgesDocument } from "./model.ts";
import { sumUp } from "./sums.ts";

/** Throws NothingPinned, ForeignGeneration and KernelError. */
export function pinnedDocument(bpffs: string): EdgesDocument {
  const tables = openPinned(bpffs);
  try {
    const sources = new Sources(tables.maps.source_names);
    sources.refresh();
    const reading = readTraffic(tables.maps);
    const sums = sumUp(reading, sources, new Labels(tables, undefined, false));
    const history = new History();
    history.record(totalsFor(sums), reading.wall);
    const document = makeDocument({
      reading,
      sums,
      history,
      window: 0,
      machine: { host: hostname(), workload: "unknown", namespace: "", cluster: "", addresses: [] },
      off: [
        "No agent runs: there are totals, and neither rates, history nor problems. Bytes of live connections are those of its last look.",
      ],
    });
    return { ...document, window: 0 };
  } finally {
    tables.close();
  }
}
