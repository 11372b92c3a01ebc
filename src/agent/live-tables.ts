/**
 * Has the kernel's tables follow the mesh: each push as it comes, all of it again when one could not be written, the last
 * good snapshot where istiod does not answer. While another agent has the tables, the mesh goes on in memory alone.
 */

import type { MeshStatus, SnapshotStatus, TablesStatus } from "../admin/status.ts";
import type { Datapath } from "../datapath/datapath.ts";
import { SelfTestFailed } from "../datapath/generation/self-test.ts";
import type { PublishReport } from "../datapath/mesh-tables/publisher.ts";
import { reasonOf } from "../errors/reason.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { hasPending } from "../mesh/pending.ts";
import type { Snapshot } from "../state/snapshot.ts";
import type { SnapshotKeeper } from "../state/snapshot-writer.ts";
import type { Urgency } from "../state/status-file.ts";
import type { Ownership } from "./ownership.ts";
import { meshStatusBefore, meshStatusOf, type Reporter } from "./reporter.ts";

/** After what could not be written, a push or the snapshot, milliseconds. */
const RETRY = 5_000;
/** How long istiod may take to fill the tables of a new version, before the snapshot does; milliseconds. */
const ISTIOD_PATIENCE = 10_000;
/** After istiod's first push names of DNS clusters are looked up; a successor waits for them so long at most, milliseconds. */
const NAMES_PATIENCE = 3_000;

/** What of the tables it takes. */
export type Tables = Pick<
  Ownership,
  "adopted" | "before" | "acquire" | "acquireWithin" | "release" | "publish"
> & {
  readonly datapath: Pick<Datapath, "governs" | "takesOver" | "readBack"> | undefined;
};

/** What a complaint begins with. */
const PUSH = "istiod's push is not wholly live, the rest of the tables stays as it is: ";
const SNAPSHOT = "The snapshot can't be made live: ";

export interface LiveTablesOptions {
  ownership: Tables;
  snapshots: Pick<SnapshotKeeper, "load" | "changed" | "hold" | "pause">;
  reporter: Pick<Reporter, "applied" | "restored">;
  log: { error(line: string): void };
  /** The status is another one now. */
  changed(urgency: Urgency): void;
}

export class LiveTables {
  readonly #options: LiveTablesOptions;
  readonly #ownership: Tables;
  readonly #retry: number;
  readonly #patience: number;
  #mesh: Mesh | undefined;
  /** What is to govern until istiod says something. */
  #restored: Snapshot | undefined;
  /** Set while the tables come from a snapshot. */
  #snapshot: SnapshotStatus | undefined;
  #status: TablesStatus = { applies: 0, writes: 0 };
  #relinked = 0;
  /** Of the programs, as it was told last. */
  #selfTestFailed: SelfTestFailed | undefined;
  /** The kernel lags behind the mesh: the next write compares everything. */
  #behind = false;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #patienceTimer: ReturnType<typeof setTimeout> | undefined;
  #namesTimer: ReturnType<typeof setTimeout> | undefined;
  #restTimer: ReturnType<typeof setTimeout> | undefined;
  /** The tables of another version are not kept for parts of the mesh that are still pending. */
  #restOver = false;
  readonly #live = Promise.withResolvers<void>();
  readonly #synced = Promise.withResolvers<void>();

  /** `retry`: after what could not be written; `patience`: for istiod to fill the tables of a new version; milliseconds. */
  constructor(options: LiveTablesOptions, retry = RETRY, patience = ISTIOD_PATIENCE) {
    this.#options = options;
    this.#ownership = options.ownership;
    this.#retry = retry;
    this.#patience = patience;
  }

  /** Resolves as soon as the tables hold a mesh: at once when they were adopted, else with the first push. */
  get live(): Promise<void> {
    return this.#live.promise;
  }

  /** Resolves as soon as istiod's first complete push is in memory while the tables are another's. */
  get synced(): Promise<void> {
    return this.#synced.promise;
  }

  /** What is, or is to be, live: istiod's, or the snapshot's. */
  get mesh(): Mesh | undefined {
    return this.#mesh;
  }

  /** Whether the kernel lags behind the mesh. */
  get behind(): boolean {
    return this.#behind;
  }

  /** Map writes and hooks that changed hands since the start. */
  get work(): { writes: number; relinked: number } {
    return { writes: this.#status.writes, relinked: this.#relinked };
  }

  /** As the agent's status has it. */
  status(): { snapshot?: SnapshotStatus; tables: TablesStatus; mesh: MeshStatus } {
    const { adopted, before } = this.#ownership;
    return {
      ...(this.#snapshot ? { snapshot: this.#snapshot } : {}),
      tables: this.#status,
      mesh: this.#mesh
        ? { ...meshStatusOf(this.#mesh), current: this.#snapshot === undefined }
        : meshStatusBefore(adopted ? before?.mesh : undefined),
    };
  }

  /** Takes the tables, and nothing is written yet. Rejects with what Ownership.acquire throws. */
  async take(): Promise<void> {
    await this.#ownership.acquireWithin("command");
    this.#inherit();
  }

  /** The same when the agent that had them last is about to be gone. */
  async acquireWithin(): Promise<void> {
    await this.#ownership.acquireWithin("agent");
    this.#inherit();
  }

  /** From here on pushes only change the mesh in memory. */
  release(): void {
    clearTimeout(this.#patienceTimer);
    clearTimeout(this.#restTimer);
    this.#ownership.release();
  }

  /** Nothing is tried again, and nobody is waited for any more. */
  stop(): void {
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#patienceTimer);
    clearTimeout(this.#namesTimer);
    clearTimeout(this.#restTimer);
  }

  /** At a start, before istiod says anything: what governs goes on, else the snapshot governs. */
  begin(): void {
    const { governs = false, takesOver = false } = this.#ownership.datapath ?? {};
    if (takesOver) this.#patienceTimer = setTimeout(() => this.#restore(), this.#patience);
    if (governs) {
      this.#live.resolve();
      setTimeout(() => this.#readBack(), 0);
    } else this.#restore();
  }

  /** What a successor does with the tables. Throws when they can't become what istiod wants. */
  takeOver(): void {
    const { datapath } = this.#ownership;
    if (this.#mesh) {
      this.#publishNow({ everything: true });
      if (this.#behind || this.#selfTestFailed)
        throw new Error(this.#status.lastError?.text ?? "the tables can't be written");
    } else if (!datapath?.governs || datapath.takesOver) {
      this.#restore();
      if (this.#status.lastError) throw new Error(this.#status.lastError.text);
    }
    if (this.#ownership.datapath?.takesOver)
      throw new Error("istiod does not answer, and no snapshot is there to fill this version's tables");
    this.#live.resolve();
  }

  /** Another agent is about to take them: the snapshot is that one's, too. Takes effect until `takeBack`. */
  pause(): void {
    clearTimeout(this.#retryTimer);
    this.#options.snapshots.pause();
    this.release();
  }

  /** Whatever another agent did to them, they become what istiod wants. To be called when they are taken again. */
  takeBack(): void {
    const { datapath } = this.#ownership;
    if (this.#hasPush) this.#publishNow({ everything: true });
    // It came as far as to govern by its own tables; or nothing governs yet.
    else if (datapath && (datapath.takesOver || !datapath.governs)) {
      this.#mesh = undefined;
      this.#restored = undefined;
      this.#restore();
    }
  }

  /** A push of istiod. Never throws: what can't be written is tried again. */
  publish(mesh: Mesh, changes: Changes): void {
    this.#mesh = mesh;
    this.#restored = undefined;
    if (!this.#ownership.datapath) {
      // Whoever takes the tables next compares everything.
      this.#behind = true;
      this.#noteSync(mesh);
      return;
    }
    if (this.#waitsForRest(mesh)) {
      this.#behind = true;
      return;
    }
    this.#publishNow(this.#behind ? { everything: true } : changes);
  }

  /**
   * The tables of another version know what this push does not say yet, and these would govern without it: the others go
   * on until all is known, for a while.
   */
  #waitsForRest(mesh: Mesh): boolean {
    if (!this.#ownership.datapath?.takesOver || this.#restOver || !hasPending(mesh)) return false;
    this.#restTimer ??= setTimeout(() => {
      this.#restOver = true;
      if (!this.#hasPush || !this.#ownership.datapath?.takesOver) return;
      this.#options.log.error(
        `Parts of istiod's push are still unknown after ${this.#patience / 1000} s (kmesh status lists them): the tables of this version govern without them.`,
      );
      this.#publishNow({ everything: true });
    }, this.#patience);
    return true;
  }

  /** While istiod thinks about its first answer. */
  #readBack(): void {
    try {
      this.#ownership.datapath?.readBack();
    } catch {
      // The first push finds the same, and tells.
    }
  }

  /** Who fills them from a snapshot says so until istiod answers, over as many agents as that takes. */
  #inherit(): void {
    this.#status = { ...this.#status, openedAt: new Date().toISOString() };
    if (this.#ownership.datapath?.governs) this.#snapshot = this.#ownership.before?.snapshot;
  }

  /** A successor is in sync when it knows the addresses of names, too, or nobody says them in time. */
  #noteSync(mesh: Mesh): void {
    if (!hasPending(mesh)) this.#synced.resolve();
    else this.#namesTimer ??= setTimeout(() => this.#synced.resolve(), NAMES_PATIENCE);
  }

  /** Whether the mesh is istiod's. */
  get #hasPush(): boolean {
    return this.#mesh !== undefined && this.#mesh !== this.#restored?.mesh;
  }

  /** Governs by the last good snapshot until istiod answers, unless it has by now. Never throws: it is tried again. */
  #restore(): void {
    if (this.#hasPush || !this.#ownership.datapath) return;
    const { snapshots, reporter, changed } = this.#options;
    clearTimeout(this.#retryTimer);
    this.#restored ??= snapshots.load();
    if (!this.#restored) return;
    const { mesh, writtenAt } = this.#restored;
    try {
      const { writes, milliseconds, selfTestFailed } = this.#write(mesh, { everything: true });
      const appliedAt = new Date().toISOString();
      const first = this.#mesh === undefined;
      const { lastError: _, ...status } = this.#status;
      this.#status = status;
      this.#mesh = mesh;
      this.#snapshot = { writtenAt: writtenAt.toISOString(), appliedAt, writes, milliseconds };
      if (first) reporter.restored(mesh, this.#snapshot);
      this.#live.resolve();
      if (selfTestFailed) this.#complain(selfTestFailed, SNAPSHOT);
      else this.#selfTestFailed = undefined;
    } catch (error) {
      // What it left half done is not attached, and the next write compares all of it.
      this.#complain(error, SNAPSHOT);
    }
    changed("news");
  }

  #publishNow(changes: Changes): void {
    const mesh = this.#mesh;
    if (!mesh || !this.#ownership.datapath) return;
    const { snapshots, reporter, changed } = this.#options;
    clearTimeout(this.#retryTimer);
    try {
      const { writes, milliseconds, selfTestFailed } = this.#write(mesh, changes);
      const now = new Date().toISOString();
      const first = this.#status.firstApplyAt === undefined;
      const { openedAt } = this.#status;
      this.#status = {
        ...(openedAt ? { openedAt } : {}),
        applies: this.#status.applies + 1,
        writes: this.#status.writes + writes,
        firstApplyAt: this.#status.firstApplyAt ?? now,
        firstWrites: this.#status.firstWrites ?? writes,
        lastApplyAt: now,
        lastWrites: writes,
        lastMilliseconds: milliseconds,
      };
      this.#behind = false;
      this.#snapshot = undefined;
      snapshots.changed(mesh);
      this.#live.resolve();
      reporter.applied(mesh, { first, writes, milliseconds });
      if (selfTestFailed) this.#complain(selfTestFailed, PUSH);
      else this.#selfTestFailed = undefined;
    } catch (error) {
      // What was not written yet stays as it was; the mesh is tried again as a whole.
      this.#behind = true;
      snapshots.hold();
      this.#complain(error, PUSH);
    }
    changed(changes.everything || changes.services.size > 0 ? "news" : "numbers");
  }

  /** Tells why not all is live, in log and status, and tries again later. */
  #complain(error: unknown, what: string): void {
    const failed = error instanceof SelfTestFailed ? error : undefined;
    const reason = reasonOf(error);
    const wait = failed?.retryAfter ?? this.#retry;
    this.#status = { ...this.#status, lastError: { at: new Date().toISOString(), text: reason } };
    // It is the same error at each push until the next self-test.
    if (!failed || failed !== this.#selfTestFailed)
      this.#options.log.error(`${failed ? "" : what}${reason}. Next try in ${wait / 1000} s.`);
    this.#selfTestFailed = failed;
    this.#retryTimer = setTimeout(() => {
      if (this.#hasPush) this.#publishNow({ everything: true });
      else this.#restore();
    }, wait);
  }

  #write(mesh: Mesh, changes: Changes): PublishReport & { selfTestFailed?: SelfTestFailed } {
    const { relinked, ...report } = this.#ownership.publish(mesh, changes);
    this.#relinked += relinked;
    return report;
  }
}
