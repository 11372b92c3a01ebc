/**
 * Publishes the mesh to the kernel's tables: each push as it arrives, everything again after a failed write, and the last
 * snapshot while istiod does not answer. While another agent owns the tables, pushes change the mesh in memory only.
 */

import type { MeshStatus, SnapshotStatus, TablesStatus } from "../admin/status.ts";
import type { Datapath } from "../datapath/datapath.ts";
import { SelfTestFailed } from "../datapath/generation/self-test.ts";
import type { PublishReport } from "../datapath/mesh-tables/publisher.ts";
import { reasonOf } from "../errors/reason.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { hasPending } from "../mesh/pending.ts";
import { collectGarbage } from "../runtime/heap.ts";
import { releaseCode } from "../runtime/pages.ts";
import type { Snapshot } from "../state/snapshot.ts";
import type { SnapshotKeeper } from "../state/snapshot-writer.ts";
import type { Urgency } from "../state/status-file.ts";
import type { Ownership } from "./ownership.ts";
import { meshStatusBefore, meshStatusOf, type Reporter } from "./reporter.ts";

/** Delay after a failed write of a push or the snapshot, milliseconds. */
const RETRY = 5_000;
/** Longest wait for istiod to fill the tables of a new version, before the snapshot fills them; milliseconds. */
const ISTIOD_PATIENCE = 10_000;
/** Longest wait of a successor for the addresses of DNS clusters after istiod's first push, milliseconds. */
const NAMES_PATIENCE = 3_000;

/**
 * From a push of the whole mesh until its garbage is collected, milliseconds: the agent has answered everybody by then; and from
 * there until that of the snapshot is.
 */
const TIDY_AFTER = [2_000, 8_000] as const;

/** The operations that it needs. */
export type Tables = Pick<
  Ownership,
  "adopted" | "before" | "acquire" | "acquireWithin" | "release" | "publish"
> & {
  readonly datapath: Pick<Datapath, "governs" | "takesOver" | "readBack"> | undefined;
};

/** The subject of an error message. */
const PUSH = "istiod's push is only partly live, the rest of the tables is unchanged: ";
const SNAPSHOT = "The snapshot can't be made live: ";

export interface LiveTablesOptions {
  ownership: Tables;
  snapshots: Pick<SnapshotKeeper, "load" | "changed" | "hold" | "pause">;
  reporter: Pick<Reporter, "applied" | "restored">;
  log: { error(line: string): void };
  /** The status changed. */
  changed(urgency: Urgency): void;
}

export class LiveTables {
  readonly #options: LiveTablesOptions;
  readonly #ownership: Tables;
  readonly #retry: number;
  readonly #patience: number;
  #mesh: Mesh | undefined;
  /** The snapshot that governs until istiod answers. */
  #restored: Snapshot | undefined;
  /** Set while the tables come from a snapshot. */
  #snapshot: SnapshotStatus | undefined;
  #status: TablesStatus = { applies: 0, writes: 0 };
  #relinked = 0;
  /** The last logged error of the self-test. */
  #selfTestFailed: SelfTestFailed | undefined;
  /** A write failed, so the next write compares everything. */
  #behind = false;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #patienceTimer: ReturnType<typeof setTimeout> | undefined;
  #namesTimer: ReturnType<typeof setTimeout> | undefined;
  #restTimer: ReturnType<typeof setTimeout> | undefined;
  #tidyTimer: ReturnType<typeof setTimeout> | undefined;
  /** No longer keeps another version's tables while parts of the mesh are pending. */
  #restOver = false;
  readonly #live = Promise.withResolvers<void>();
  readonly #synced = Promise.withResolvers<void>();

  /** `retry`: delay after a failed write; `patience`: wait for istiod to fill the tables of a new version; milliseconds. */
  constructor(options: LiveTablesOptions, retry = RETRY, patience = ISTIOD_PATIENCE) {
    this.#options = options;
    this.#ownership = options.ownership;
    this.#retry = retry;
    this.#patience = patience;
  }

  /** Resolves when the tables hold a mesh: at once if they were adopted, otherwise with the first push. */
  get live(): Promise<void> {
    return this.#live.promise;
  }

  /** Resolves when istiod's first complete push is in memory, while another agent owns the tables. */
  get synced(): Promise<void> {
    return this.#synced.promise;
  }

  /** The mesh to publish: istiod's or the snapshot's. */
  get mesh(): Mesh | undefined {
    return this.#mesh;
  }

  /** Whether a part of the mesh is not published yet. */
  get behind(): boolean {
    return this.#behind;
  }

  /** Map writes and replaced hooks since the start. */
  get work(): { writes: number; relinked: number } {
    return { writes: this.#status.writes, relinked: this.#relinked };
  }

  /** For the agent's status. */
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

  /** Acquires the tables without writing. Rejects as Ownership.acquire. */
  async take(): Promise<void> {
    await this.#ownership.acquireWithin("command");
    this.#inherit();
  }

  /** The same, and waits for the end of the previous owner. */
  async acquireWithin(): Promise<void> {
    await this.#ownership.acquireWithin("agent");
    this.#inherit();
  }

  /** Releases the tables. Pushes then change only the mesh in memory. */
  release(): void {
    clearTimeout(this.#patienceTimer);
    clearTimeout(this.#restTimer);
    this.#ownership.release();
  }

  /** Cancels retries and waits. */
  stop(): void {
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#patienceTimer);
    clearTimeout(this.#namesTimer);
    clearTimeout(this.#restTimer);
    clearTimeout(this.#tidyTimer);
  }

  /** At a start, before istiod answers: keeps live tables, otherwise publishes the snapshot. */
  begin(): void {
    const { governs = false, takesOver = false } = this.#ownership.datapath ?? {};
    if (takesOver) this.#patienceTimer = setTimeout(() => this.#restore(), this.#patience);
    if (governs) {
      this.#live.resolve();
      setTimeout(() => this.#readBack(), 0);
    } else this.#restore();
  }

  /** Publishes a successor's mesh to the tables. Throws when that fails. */
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

  /** Another agent is about to acquire the tables, and with them the snapshot. Holds until `takeBack`. */
  pause(): void {
    clearTimeout(this.#retryTimer);
    this.#options.snapshots.pause();
    this.release();
  }

  /** Publishes the whole mesh, whatever another agent wrote. Call it when the tables are acquired again. */
  takeBack(): void {
    const { datapath } = this.#ownership;
    if (this.#hasPush) this.#publishNow({ everything: true });
    // The other agent's tables are live, or none are.
    else if (datapath && (datapath.takesOver || !datapath.governs)) {
      this.#mesh = undefined;
      this.#restored = undefined;
      this.#restore();
    }
  }

  /** Publishes a push of istiod. Never throws: a failed write is repeated. */
  publish(mesh: Mesh, changes: Changes): void {
    this.#mesh = mesh;
    this.#restored = undefined;
    if (!this.#ownership.datapath) {
      // The next owner of the tables compares everything.
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
   * Whether to wait with a flip: the live tables of another version have parts that are still pending here. They stay live
   * until all parts are known, for a limited time.
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

  /** Verifies the programs while istiod prepares its first answer. */
  #readBack(): void {
    try {
      this.#ownership.datapath?.readBack();
    } catch {
      // The first push finds the same fault and logs it.
    }
  }

  /** The origin of tables that hold a snapshot. Successors keep it until istiod answers. */
  #inherit(): void {
    this.#status = { ...this.#status, openedAt: new Date().toISOString() };
    if (this.#ownership.datapath?.governs) this.#snapshot = this.#ownership.before?.snapshot;
  }

  /** A successor is in sync when it also knows the addresses of DNS clusters, or when their time limit has passed. */
  #noteSync(mesh: Mesh): void {
    if (!hasPending(mesh)) this.#synced.resolve();
    else this.#namesTimer ??= setTimeout(() => this.#synced.resolve(), NAMES_PATIENCE);
  }

  /** Whether the mesh is istiod's, not the snapshot's. */
  get #hasPush(): boolean {
    return this.#mesh !== undefined && this.#mesh !== this.#restored?.mesh;
  }

  /** Publishes the last snapshot unless istiod has answered by now. Never throws: a failed write is repeated. */
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
      // An incomplete generation is not attached, and the next write compares all of it.
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
      if (first || changes.everything) this.#tidy();
      if (selfTestFailed) this.#complain(selfTestFailed, PUSH);
      else this.#selfTestFailed = undefined;
    } catch (error) {
      // The unwritten rest keeps its old content; the retry writes the whole mesh.
      this.#behind = true;
      snapshots.hold();
      this.#complain(error, PUSH);
    }
    changed(changes.everything || changes.services.size > 0 ? "news" : "numbers");
  }

  /**
   * A push of the whole mesh leaves garbage of twice its size, which the runtime would collect when it needs the memory, and
   * code that is not used again: the memory belongs to the applications.
   */
  #tidy(): void {
    const [first, second] = TIDY_AFTER;
    const tidy = () => {
      collectGarbage();
      releaseCode();
    };
    clearTimeout(this.#tidyTimer);
    this.#tidyTimer = setTimeout(() => {
      tidy();
      this.#tidyTimer = setTimeout(tidy, second).unref();
    }, first).unref();
  }

  /** Records in log and status why a part is not live, and schedules a retry. */
  #complain(error: unknown, what: string): void {
    const failed = error instanceof SelfTestFailed ? error : undefined;
    const reason = reasonOf(error);
    const wait = failed?.retryAfter ?? this.#retry;
    this.#status = { ...this.#status, lastError: { at: new Date().toISOString(), text: reason } };
    // Each push fails with the same error until the next self-test.
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
