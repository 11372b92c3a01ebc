/**
 * Workloads in columns: a mesh may have a hundred thousand, and an object for each would take ten times the memory. A row is a
 * number; it is given again after its workload is gone.
 */
import { formatV4 } from "../../mesh/address.ts";
import { Rows } from "../../mesh/rows.ts";
import type { Binding, Profile, WorkloadRecord } from "../records/records.ts";
import type { WorkloadReader } from "../records/workload.ts";

const NONE: readonly never[] = [];
const SMALLEST = 64;
/** Flags of a row. */
const HEALTHY = 1;
/** Its only address is IPv4, in the column. */
const HAS_V4 = 2;

/** The fields that a row takes. */
export type WorkloadFields = Pick<
  WorkloadReader,
  "v4" | "addresses" | "hostname" | "healthy" | "weight" | "profile" | "bindings"
>;

export class WorkloadTable {
  /** By uid. */
  readonly #rows = new Rows();
  readonly #profiles: (Profile | undefined)[] = [];
  readonly #bindings: (readonly Binding[])[] = [];
  #v4 = new Uint32Array(SMALLEST);
  #weights = new Uint32Array(SMALLEST);
  #flags = new Uint8Array(SMALLEST);
  /** Addresses of rows that have not just one of IPv4. */
  readonly #addresses = new Map<number, readonly string[]>();
  readonly #hostnames = new Map<number, string>();

  get size(): number {
    return this.#rows.size;
  }

  get(uid: string): Workload | undefined {
    const row = this.#rows.find(uid);
    return row === undefined ? undefined : new Workload(this, row);
  }

  *values(): Generator<Workload> {
    for (const row of this.#rows) yield new Workload(this, row);
  }

  /** Puts a workload in the place of the one with this uid, or in a new row. Gives the row. */
  set(uid: string, fields: WorkloadFields): number {
    const row = this.#rows.add(uid);
    if (row >= this.#v4.length) this.#grow();
    const { v4, addresses, hostname, healthy, weight, profile, bindings } = fields;
    this.#profiles[row] = profile;
    this.#bindings[row] = bindings;
    this.#v4[row] = v4 ?? 0;
    this.#weights[row] = weight;
    this.#flags[row] = (healthy ? HEALTHY : 0) | (v4 === undefined ? 0 : HAS_V4);
    if (addresses.length > 0) this.#addresses.set(row, addresses);
    else this.#addresses.delete(row);
    if (hostname !== "") this.#hostnames.set(row, hostname);
    else this.#hostnames.delete(row);
    return row;
  }

  delete(uid: string): void {
    const row = this.#rows.remove(uid);
    if (row === undefined) return;
    this.#profiles[row] = undefined;
    this.#bindings[row] = NONE;
    this.#addresses.delete(row);
    this.#hostnames.delete(row);
  }

  uidAt(row: number): string {
    return this.#rows.name(row);
  }

  /** Throws RangeError for a row without a workload. */
  profileAt(row: number): Profile {
    const profile = this.#profiles[row];
    if (profile === undefined) throw new RangeError(`row ${row} has no workload`);
    return profile;
  }

  bindingsAt(row: number): readonly Binding[] {
    return this.#bindings[row] ?? NONE;
  }

  /** The 32 bits of the only address, when it is IPv4. */
  v4At(row: number): number | undefined {
    return ((this.#flags[row] ?? 0) & HAS_V4) === 0 ? undefined : this.#v4[row];
  }

  addressesAt(row: number): readonly string[] {
    const v4 = this.v4At(row);
    return v4 === undefined ? (this.#addresses.get(row) ?? NONE) : [formatV4(v4)];
  }

  hostnameAt(row: number): string {
    return this.#hostnames.get(row) ?? "";
  }

  weightAt(row: number): number {
    return this.#weights[row] ?? 1;
  }

  healthyAt(row: number): boolean {
    return ((this.#flags[row] ?? 0) & HEALTHY) !== 0;
  }

  #grow(): void {
    const length = this.#v4.length * 2;
    this.#v4 = copied(new Uint32Array(length), this.#v4);
    this.#weights = copied(new Uint32Array(length), this.#weights);
    this.#flags = copied(new Uint8Array(length), this.#flags);
  }
}

function copied<T extends Uint8Array | Uint32Array>(larger: T, list: T): T {
  larger.set(list);
  return larger;
}

/** A workload of the table, as it is now. Don't keep it: after a change it shows the new one, or another in its row. */
export class Workload implements WorkloadRecord {
  readonly #table: WorkloadTable;
  readonly row: number;

  constructor(table: WorkloadTable, row: number) {
    this.#table = table;
    this.row = row;
  }

  get uid(): string {
    return this.#table.uidAt(this.row);
  }

  get addresses(): readonly string[] {
    return this.#table.addressesAt(this.row);
  }

  /** The 32 bits of the only address, when it is IPv4. */
  get v4(): number | undefined {
    return this.#table.v4At(this.row);
  }

  get hostname(): string {
    return this.#table.hostnameAt(this.row);
  }

  get healthy(): boolean {
    return this.#table.healthyAt(this.row);
  }

  get weight(): number {
    return this.#table.weightAt(this.row);
  }

  get profile(): Profile {
    return this.#table.profileAt(this.row);
  }

  get bindings(): readonly Binding[] {
    return this.#table.bindingsAt(this.row);
  }

  /** A copy that stays as it is. */
  copy(): WorkloadRecord {
    const { uid, addresses, hostname, healthy, weight, profile, bindings } = this;
    return { uid, addresses, hostname, healthy, weight, profile, bindings };
  }
}
