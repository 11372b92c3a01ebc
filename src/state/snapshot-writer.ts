/** Writes the snapshot, off the path from a push to live tables, and reads it at the start. */

import { existsSync, fsync, fsyncSync } from "node:fs";
import { promisify } from "node:util";
import { reasonOf } from "../errors/reason.ts";
import type { Mesh } from "../mesh/model.ts";
import { hasPending } from "../mesh/pending.ts";
import {
  BadSnapshot,
  readSnapshot,
  type Snapshot,
  SnapshotDraft,
  type SnapshotKey,
  setSnapshotAside,
  snapshotFile,
} from "./snapshot.ts";

export interface Pace {
  /** A change is written when no other followed for so long, milliseconds. */
  quiet: number;
  /** A change is written after so long at the latest, milliseconds. */
  patience: number;
  /** Shortest pause between two writes, milliseconds. */
  pause: number;
  /** Highest average rate, bytes per millisecond: a large mesh that changes all the time must not wear out the disk. */
  rate: number;
  /** Pause after a write that failed, milliseconds. */
  retry: number;
  /** A mesh of which parts are pending replaces an older snapshot after so long, milliseconds. */
  pending: number;
}

/** The log for problems of the snapshot. */
export interface Remarks {
  warn(text: string): void;
  debug(text: string): void;
}

const PACE: Pace = {
  quiet: 1_000,
  patience: 10_000,
  pause: 5_000,
  rate: 256,
  retry: 60_000,
  pending: 60_000,
};

export class SnapshotKeeper {
  readonly #stateDir: string;
  readonly #bond: SnapshotKey | undefined;
  readonly #log: Remarks;
  readonly #pace: Pace;
  readonly #owns: () => boolean;
  #mesh: Mesh | undefined;
  /** Since when the file is older than the mesh. */
  #behindSince: number | undefined;
  #notBefore = 0;
  /** Since when parts of the mesh are pending. */
  #pendingSince: number | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #draft: SnapshotDraft | undefined;
  #writing: Promise<void> | undefined;
  /** Why the last write failed. */
  #trouble: string | undefined;
  #closed = false;

  /**
   * Without a machine id no snapshot is read or written, since it could not be bound to the machine; one line is
   * logged. `owns` is called before each write: false when another agent owns the file by now.
   */
  constructor(
    stateDir: string,
    machine: string | undefined,
    settings: SnapshotKey["settings"],
    log: Remarks,
    { pace = PACE, owns = () => true }: { pace?: Pace; owns?(): boolean } = {},
  ) {
    this.#stateDir = stateDir;
    this.#log = log;
    this.#pace = pace;
    this.#owns = owns;
    this.#bond = machine === undefined ? undefined : { machine, settings };
    if (this.#bond) return;
    log.warn(
      "/etc/machine-id holds no id, so no snapshot is kept: after a reboot nothing is governed until istiod answers. " +
        "systemd-machine-id-setup makes one",
    );
  }

  /** Why the last write failed; undefined when it succeeded. */
  get trouble(): string | undefined {
    return this.#trouble;
  }

  /**
   * The snapshot; undefined when there is none that can be used. An unusable one is set aside, with a line in the
   * log. Never throws.
   */
  load(): Snapshot | undefined {
    if (!this.#bond) return undefined;
    try {
      return readSnapshot(this.#stateDir, this.#bond);
    } catch (error) {
      const path = snapshotFile(this.#stateDir);
      this.#log.warn(
        error instanceof BadSnapshot
          ? `The snapshot ${path} is not used: ${error.message}. ${this.#setAside()}`
          : `The snapshot ${path} can't be read: ${reasonOf(error)}. Nothing is governed until istiod answers`,
      );
      return undefined;
    }
  }

  /** All of `mesh` is live. It is written soon. The mesh may change in place; call this for each change. Cheap. */
  changed(mesh: Mesh): void {
    if (!this.#bond || this.#closed) return;
    this.#mesh = mesh;
    this.#behindSince ??= performance.now();
    this.#schedule();
  }

  /** The mesh changed and is not live yet: nothing is written until `changed`. */
  hold(): void {
    clearTimeout(this.#timer);
    this.#mesh = undefined;
  }

  /** Writes pending changes now, off the hot path. Resolves when they are written, or can't be. Never rejects. */
  async flush(): Promise<void> {
    await this.#writing;
    if (this.#closed || this.#behindSince === undefined || !this.#mesh) return;
    clearTimeout(this.#timer);
    await this.#begin();
  }

  /** Another agent writes the file from now on. Nothing is written until `changed`. */
  pause(): void {
    this.hold();
    this.#behindSince = undefined;
    this.#drop(this.#draft);
  }

  /** Writes pending changes synchronously. Nothing is written afterwards. Never throws. */
  close(): void {
    clearTimeout(this.#timer);
    this.#closed = true;
    const mesh = this.#draft || this.#behindSince !== undefined ? this.#mesh : undefined;
    this.#mesh = undefined;
    this.#drop(this.#draft);
    if (!mesh || !this.#bond || !this.#owns() || this.#waitsForPending(mesh)) return;
    try {
      this.#draft = new SnapshotDraft(this.#stateDir, mesh, this.#bond);
      while (this.#draft.step());
      fsyncSync(this.#draft.fd);
      this.#draft.publish();
    } catch (error) {
      this.#failed(error);
    }
  }

  #schedule(): void {
    if (this.#draft || this.#behindSince === undefined) return;
    clearTimeout(this.#timer);
    const now = performance.now();
    const due = Math.min(now + this.#pace.quiet, this.#behindSince + this.#pace.patience);
    this.#timer = setTimeout(() => void this.#begin(), Math.max(due, this.#notBefore) - now);
    this.#timer.unref?.();
  }

  #begin(): Promise<void> {
    this.#writing = this.#write();
    return this.#writing;
  }

  async #write(): Promise<void> {
    if (!this.#mesh || !this.#bond || !this.#owns()) return;
    if (this.#waitsForPending(this.#mesh)) {
      this.#notBefore = performance.now() + this.#pace.pause;
      this.#schedule();
      return;
    }
    const since = this.#behindSince;
    // Later changes are not in this snapshot.
    this.#behindSince = undefined;
    let wait = this.#pace.retry;
    let draft: SnapshotDraft | undefined;
    try {
      draft = new SnapshotDraft(this.#stateDir, this.#mesh, this.#bond);
      this.#draft = draft;
      while (draft.step()) {
        await new Promise((resolve) => setImmediate(resolve));
        if (this.#draft !== draft) return;
      }
      // fsync on another thread.
      await promisify(fsync)(draft.fd);
      if (this.#draft !== draft) return;
      if (!this.#owns()) {
        this.#drop(draft);
        return;
      }
      draft.publish();
      this.#draft = undefined;
      this.#trouble = undefined;
      wait = Math.max(this.#pace.pause, draft.size / this.#pace.rate);
    } catch (error) {
      if (draft && this.#draft !== draft) return;
      this.#failed(error);
      this.#behindSince = since;
    }
    this.#notBefore = performance.now() + wait;
    this.#schedule();
  }

  /** After a start the kernel has more than a mesh with pending parts, and so has the snapshot of before. */
  #waitsForPending(mesh: Mesh): boolean {
    if (!hasPending(mesh)) {
      this.#pendingSince = undefined;
      return false;
    }
    this.#pendingSince ??= performance.now();
    const isNew = performance.now() - this.#pendingSince < this.#pace.pending;
    return isNew && existsSync(snapshotFile(this.#stateDir));
  }

  /** Logs a failed write. Repeated failures are logged at debug level. */
  #failed(error: unknown): void {
    this.#drop(this.#draft);
    const text = `The snapshot ${snapshotFile(this.#stateDir)} can't be written: ${reasonOf(error)}`;
    if (this.#trouble !== undefined) this.#log.debug(text);
    else
      this.#log.warn(
        `${text}. Traffic does not need it; after a reboot without istiod an older one governs, or none`,
      );
    this.#trouble = text;
  }

  #drop(draft: SnapshotDraft | undefined): void {
    this.#draft = undefined;
    try {
      draft?.discard();
    } catch {
      // In a read-only folder the file stays; the next write replaces it.
    }
  }

  #setAside(): string {
    try {
      return `It lies in ${setSnapshotAside(this.#stateDir)} now; nothing is governed until istiod answers`;
    } catch (error) {
      return `It can't be set aside (${reasonOf(error)}); nothing is governed until istiod answers`;
    }
  }
}
