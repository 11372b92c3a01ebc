/** An agent's part in a hand-over, as the predecessor and as the successor. */

import type { Folders } from "../config/config.ts";
import { pinnedTotals } from "../datapath/inspect/pinned-totals.ts";
import type { Predecessor } from "../handover/predecessor.ts";
import { type End, executedAnew } from "../handover/restart.ts";
import type { Successor } from "../handover/successor.ts";
import { faultPoint } from "../runtime/fault.ts";
import type { SnapshotKeeper } from "../state/snapshot-writer.ts";
import type { StatusFile } from "../state/status-file.ts";
import type { ControlPlane } from "./control-plane.ts";
import type { LiveTables } from "./live-tables.ts";
import type { Ownership } from "./ownership.ts";

/** The parts of an agent that a hand-over uses. */
export interface HandoverContext {
  folders: Folders;
  controlPlane: ControlPlane;
  ownership: Ownership;
  tables: LiveTables;
  snapshots: SnapshotKeeper;
  statusFile: StatusFile;
  /** Serves the admin socket, in place of another process. */
  serve(): Promise<void>;
  /** Whether the path of the admin socket leads to this agent's socket. */
  isReachable(): boolean;
  /** Another process has become the agent. */
  succeeded(pid: number): void;
  /** This process must end. */
  end(why: End): void;
}

export function asPredecessor(agent: HandoverContext): Predecessor {
  const { controlPlane, ownership, tables, snapshots, statusFile } = agent;
  const { bpffs, runDir } = agent.folders;
  return {
    runDir,
    synced: controlPlane.synced && controlPlane.connected,
    totals: () => ownership.datapath?.totals() ?? pinnedTotals(bpffs),
    flush: () => snapshots.flush(),
    pause: () => {
      statusFile.write();
      tables.pause();
    },
    resume: async () => {
      try {
        await tables.acquireWithin();
      } catch (error) {
        // An ordinary start, with its waiting times and log lines.
        agent.end(executedAnew());
        throw error;
      }
      tables.takeBack();
      // The predecessor still has to answer the client of POST /restart.
      if (!agent.isReachable()) await agent.serve();
      statusFile.write();
    },
    pinnedTotals: () => pinnedTotals(bpffs),
    succeeded: (pid) => agent.succeeded(pid),
  };
}

export function asSuccessor(agent: HandoverContext): Successor {
  const { tables } = agent;
  return {
    synced: tables.synced,
    size: () => {
      const { services, endpoints } = tables.mesh ? tables.status().mesh : { services: 0, endpoints: 0 };
      return { services, endpoints };
    },
    take: async () => {
      await tables.acquireWithin();
      faultPoint("successor.locks");
      tables.takeOver();
      faultPoint("successor.written");
      return tables.work;
    },
    serve: () => agent.serve(),
  };
}
