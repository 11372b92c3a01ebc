/**
 * Some steps of an edge's history. Most edges never use half of the fields (failures by kind, retransmits), so a chunk has
 * values only for those that were ever something else than 0.
 */

/** Steps of a chunk. */
export const CHUNK_STEPS = 36;

export class Chunk {
  /** Bit N is set when field N has values. */
  #fields = 0;
  /** The values of each step, field after field in the order of their numbers. */
  #values = new Float32Array();

  /** How many values it holds. */
  get size(): number {
    return this.#values.length;
  }

  /** `field` is below 32, `step` below CHUNK_STEPS. */
  get(step: number, field: number): number {
    return this.#has(field) ? (this.#values[this.#start(field) + step] ?? 0) : 0;
  }

  add(step: number, field: number, more: number): void {
    if (more !== 0) this.set(step, field, this.get(step, field) + more);
  }

  set(step: number, field: number, value: number): void {
    if (!this.#has(field)) {
      if (value === 0) return;
      this.#widen(field);
    }
    this.#values[this.#start(field) + step] = value;
  }

  /** Of the steps from `first` to `last`, both included. */
  sum(field: number, first: number, last: number): number {
    if (!this.#has(field)) return 0;
    const start = this.#start(field);
    let sum = 0;
    for (let step = Math.max(0, first); step <= Math.min(last, CHUNK_STEPS - 1); step++)
      sum += this.#values[start + step] ?? 0;
    return sum;
  }

  /** Writes the values of all of `fields` fields, step after step. */
  copyTo(all: Float32Array, fields: number): void {
    all.fill(0);
    for (let field = 0; field < fields; field++) {
      if (!this.#has(field)) continue;
      const start = this.#start(field);
      for (let step = 0; step < CHUNK_STEPS; step++)
        all[step * fields + field] = this.#values[start + step] ?? 0;
    }
  }

  /** From what `copyTo` wrote. */
  static of(all: Float32Array, fields: number): Chunk {
    let used = 0;
    for (const [at, value] of all.entries()) if (value !== 0) used |= 1 << (at % fields);
    const chunk = Chunk.#with(used);
    for (const [at, value] of all.entries()) chunk.set(Math.floor(at / fields), at % fields, value);
    return chunk;
  }

  /** An empty chunk with room for the fields that this one uses: the next steps of an edge seldom need another. */
  next(): Chunk {
    let used = 0;
    for (let field = 0; field < 32; field++)
      if (this.sum(field, 0, CHUNK_STEPS - 1) !== 0) used |= 1 << field;
    return Chunk.#with(used);
  }

  static #with(fields: number): Chunk {
    const chunk = new Chunk();
    chunk.#fields = fields;
    chunk.#values = new Float32Array(CHUNK_STEPS * bits(fields));
    return chunk;
  }

  #has(field: number): boolean {
    return (this.#fields & (1 << field)) !== 0;
  }

  #start(field: number): number {
    return CHUNK_STEPS * bits(this.#fields & ((1 << field) - 1));
  }

  #widen(field: number): void {
    const start = this.#start(field);
    const values = new Float32Array(this.#values.length + CHUNK_STEPS);
    values.set(this.#values.subarray(0, start));
    values.set(this.#values.subarray(start), start + CHUNK_STEPS);
    this.#values = values;
    this.#fields |= 1 << field;
  }
}

/** How many bits are set. */
function bits(word: number): number {
  let count = 0;
  for (let rest = word; rest !== 0; rest &= rest - 1) count++;
  return count;
}
