/** Texts by number, each held once, as bytes: a string of its own takes three times the memory. */

const SEED = 0x811c9dc5;
const PRIME = 0x01000193;
const SMALLEST = 64;
/** Most UTF-8 bytes of one UTF-16 unit. */
const WIDEST = 3;

/** Grows only: who drops texts begins with a new table. */
export class Texts {
  #bytes = Buffer.allocUnsafeSlow(1024);
  /** Where each text begins; the last entry in use is where the next one will. */
  #starts = new Uint32Array(SMALLEST);
  #count = 0;
  /** By hash, with open addressing: number + 1, 0 for none. */
  #slots = new Uint32Array(SMALLEST);
  /** The end of the draft, which begins where the last text ends. */
  #end = 0;

  /** How many texts there are: their numbers are 0 to `size - 1`. */
  get size(): number {
    return this.#count;
  }

  /** The number of a text. */
  intern(text: string): number {
    const start = this.#begin();
    this.#makeRoom(start + text.length * WIDEST);
    this.#end = start + this.#bytes.write(text, start, "utf8");
    return this.finish();
  }

  /** Appends bytes to the text that `finish` takes. */
  append(bytes: Uint8Array, start: number, end: number): void {
    this.#makeRoom(this.#end + end - start);
    for (let i = start; i < end; i++) this.#bytes[this.#end++] = bytes[i] ?? 0;
  }

  /** Appends one ASCII character, given by its code. */
  appendCode(code: number): void {
    this.#makeRoom(this.#end + 1);
    this.#bytes[this.#end++] = code;
  }

  /** The number of the text that was appended since the last call. */
  finish(): number {
    const start = this.#starts[this.#count] ?? 0;
    let slot = this.#slotOf(start, this.#end);
    const known = this.#slots[slot] ?? 0;
    if (known !== 0) {
      this.#end = start;
      return known - 1;
    }
    if (this.#count * 2 >= this.#slots.length) {
      this.#rehash();
      slot = this.#slotOf(start, this.#end);
    }
    const number = this.#count++;
    this.#slots[slot] = number + 1;
    if (this.#count === this.#starts.length) this.#starts = grown(this.#starts);
    this.#starts[this.#count] = this.#end;
    return number;
  }

  /** The text of a number that `intern` or `finish` gave; "" for another one. */
  at(number: number): string {
    if (!(number >= 0 && number < this.#count)) return "";
    return this.#bytes.toString("utf8", this.#starts[number], this.#starts[number + 1]);
  }

  /** Drops an unfinished text. Gives where the next one begins. */
  #begin(): number {
    this.#end = this.#starts[this.#count] ?? 0;
    return this.#end;
  }

  /** The slot that holds the text in these bytes, or the one where it belongs. */
  #slotOf(start: number, end: number): number {
    const mask = this.#slots.length - 1;
    for (let slot = this.#hash(start, end) & mask; ; slot = (slot + 1) & mask) {
      const known = this.#slots[slot] ?? 0;
      if (known === 0 || this.#isSame(known - 1, start, end)) return slot;
    }
  }

  #hash(start: number, end: number): number {
    let hash = SEED;
    for (let i = start; i < end; i++) hash = Math.imul(hash ^ (this.#bytes[i] ?? 0), PRIME);
    return (hash ^ (hash >>> 15)) >>> 0;
  }

  #isSame(number: number, start: number, end: number): boolean {
    const from = this.#starts[number] ?? 0;
    if ((this.#starts[number + 1] ?? 0) - from !== end - start) return false;
    for (let i = start, k = from; i < end; i++, k++) if (this.#bytes[i] !== this.#bytes[k]) return false;
    return true;
  }

  #rehash(): void {
    this.#slots = new Uint32Array(this.#slots.length * 2);
    for (let i = 0; i < this.#count; i++)
      this.#slots[this.#slotOf(this.#starts[i] ?? 0, this.#starts[i + 1] ?? 0)] = i + 1;
  }

  #makeRoom(length: number): void {
    if (length <= this.#bytes.length) return;
    const larger = Buffer.allocUnsafeSlow(Math.max(length, this.#bytes.length * 2));
    this.#bytes.copy(larger, 0, 0, this.#end);
    this.#bytes = larger;
  }
}

function grown(list: Uint32Array<ArrayBuffer>): Uint32Array<ArrayBuffer> {
  const larger = new Uint32Array(list.length * 2);
  larger.set(list);
  return larger;
}
