/**
 * The history as a file: a line of JSON with the format, then for each edge a line of JSON and the values of its chunks as
 * 32-bit floats (little-endian on every machine that kmesh runs on). Written and read in pieces: an hour of
 * 500 edges is 11 MB, and as one text took 200 MB for a moment in each minute.
 */
import { closeSync, openSync, readSync, renameSync, rmSync, writeSync } from "node:fs";
import { noCounters } from "./counters/rows.ts";
import { FIELDS, History, type Track } from "./history.ts";
import { CHUNK_STEPS, Chunk } from "./history-chunk.ts";

const VERSION = 2;
/** Bytes. */
const PIECE = 256 << 10;
/** Values of a chunk. */
const VALUES = CHUNK_STEPS * FIELDS;
/** Of a line, bytes. */
const LONGEST = 64 << 10;

/** Replaces the file at `path` as a whole. Throws what the file system says; the old file is then as it was. */
export function writeHistory(path: string, history: History): void {
  const fresh = `${path}.new`;
  try {
    const fd = openSync(fresh, "w", 0o600);
    try {
      const pieces = new Pieces(fd);
      const all = new Float32Array(VALUES);
      const bytes = new Uint8Array(all.buffer);
      const { first, last } = history;
      pieces.add(line({ version: VERSION, values: VALUES, first, last }));
      for (const [id, { before, chunks }] of history.tracks) {
        pieces.add(line({ id, before, chunks: [...chunks.keys()] }));
        for (const chunk of chunks.values()) {
          chunk.copyTo(all, FIELDS);
          pieces.add(bytes);
        }
      }
      pieces.flush();
    } finally {
      closeSync(fd);
    }
    renameSync(fresh, path);
  } catch (error) {
    rmSync(fresh, { force: true });
    throw error;
  }
}

/** What `writeHistory` wrote; an empty history where there is no file, or one of another kind. What is damaged is left out. */
export function readHistory(path: string): History {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return new History();
  }
  try {
    return historyIn(new Reader(fd));
  } catch {
    return new History();
  } finally {
    closeSync(fd);
  }
}

function historyIn(reader: Reader): History {
  const head = reader.line();
  if (head?.version !== VERSION || head.values !== VALUES) return new History();
  const tracks = new Map<string, Track>();
  const all = new Float32Array(VALUES);
  const bytes = new Uint8Array(all.buffer);
  for (let each = reader.line(); each !== undefined; each = reader.line()) {
    const { id, before, chunks } = each;
    if (typeof id !== "string" || !Array.isArray(chunks)) break;
    const track: Track = { before: { ...noCounters(), ...(before as object) }, chunks: new Map() };
    for (const number of chunks) {
      if (!Number.isInteger(number) || !reader.fill(bytes)) return History.of(head, tracks);
      track.chunks.set(number, Chunk.of(all, FIELDS));
    }
    tracks.set(id, track);
  }
  return History.of(head, tracks);
}

function line(value: object): Buffer {
  return Buffer.from(`${JSON.stringify(value)}\n`);
}

class Pieces {
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafe(PIECE);
  #used = 0;

  constructor(fd: number) {
    this.#fd = fd;
  }

  add(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      if (this.#used === PIECE) this.flush();
      const part = bytes.subarray(at, at + PIECE - this.#used);
      this.#buffer.set(part, this.#used);
      this.#used += part.length;
      at += part.length;
    }
  }

  flush(): void {
    for (let at = 0; at < this.#used; ) at += writeSync(this.#fd, this.#buffer, at, this.#used - at);
    this.#used = 0;
  }
}

class Reader {
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafe(PIECE);
  #at = 0;
  #end = 0;

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** The next line as an object; undefined at the end. Throws when there is none. */
  line(): Record<string, unknown> | undefined {
    let text = "";
    while (text.length <= LONGEST) {
      if (this.#at === this.#end && !this.#more()) return undefined;
      const end = this.#buffer.subarray(0, this.#end).indexOf(10, this.#at);
      text += this.#buffer.toString("latin1", this.#at, end === -1 ? this.#end : end);
      this.#at = end === -1 ? this.#end : end + 1;
      if (end !== -1) return JSON.parse(Buffer.from(text, "latin1").toString());
    }
    throw new Error("a line is too long");
  }

  /** False when the file ends before. */
  fill(bytes: Uint8Array): boolean {
    for (let at = 0; at < bytes.length; ) {
      if (this.#at === this.#end && !this.#more()) return false;
      const part = this.#buffer.subarray(this.#at, Math.min(this.#end, this.#at + bytes.length - at));
      bytes.set(part, at);
      at += part.length;
      this.#at += part.length;
    }
    return true;
  }

  #more(): boolean {
    this.#at = 0;
    this.#end = readSync(this.#fd, this.#buffer, 0, PIECE, null);
    return this.#end > 0;
  }
}
