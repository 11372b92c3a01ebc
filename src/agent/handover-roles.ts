/** What an agent does in a hand-over, as the one that hands over and as the one that takes over. */

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

/** An agent as a hand-over needs it. */
export interface HandoverContext {
  folders: Folders;
  controlPlane: ControlPlane;
  ownership: Ownership;
  tables: LiveTables;
  snapshots: SnapshotKeeper;
  statusFile: StatusFile;
  /** Answers on the admin socket, whoever did before. */
  serve(): Promise<void>;
  /** Whether the admin socket under its path is this agent's. */
  isReachable(): boolean;
  /** Another process is the agent from now on. */
  succeeded(pid: number): void;
  /** This process has to end. */
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
        // A start like any other, with its patience and its words.
        agent.end(executedAnew());
        throw error;
      }
      tables.takeBack();
      // The one before still answers who asked for all this.
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
