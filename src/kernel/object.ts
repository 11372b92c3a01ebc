/** BPF objects (compiled .bpf.o files) and the programs that they load. */
import { cString, ffi } from "../runtime/ffi.ts";
import { Descriptor } from "./descriptor.ts";
import { check, ERRNO, KernelError } from "./error.ts";
import { fixedText, infoOf } from "./info.ts";
import { BpfMap, mapTypeNumber } from "./maps.ts";
import { native, takeLog } from "./native.ts";

/** Lines of libbpf's log in an error: the verifier's verdict is at its end. */
const LOG_LINES = 24;

/** An opened object. Owns libbpf's handle. Maps and programs from it stay valid after `close()`. */
export class BpfObject {
  readonly #name: string;
  readonly mapNames: readonly string[];
  readonly programNames: readonly string[];
  #handle: bigint;

  private constructor(handle: bigint, name: string) {
    this.#handle = handle;
    this.#name = name;
    const lib = native();
    const maps: string[] = [];
    for (
      let map = lib.bpf_object__next_map(handle, 0n);
      map !== 0n;
      map = lib.bpf_object__next_map(handle, map)
    )
      maps.push(ffi.text(lib.bpf_map__name(map)));
    const programs: string[] = [];
    for (
      let at = lib.bpf_object__next_program(handle, 0n);
      at !== 0n;
      at = lib.bpf_object__next_program(handle, at)
    )
      programs.push(ffi.text(lib.bpf_program__name(at)));
    this.mapNames = maps;
    this.programNames = programs;
  }

  /**
   * Parses an object file; nothing is in the kernel yet.
   * @param image the ELF file; copied
   * @param name for messages
   * Throws KernelError when it is not a valid object.
   */
  static open(image: Uint8Array, name: string): BpfObject {
    takeLog();
    const handle = new BigUint64Array(new ArrayBuffer(8));
    const result = native().kmesh_object_open(image, BigInt(image.length), cString(name), handle);
    if (result < 0) throw failure("bpf_object__open_mem", -result, name);
    return new BpfObject(handle[0] ?? 0n, name);
  }

  /**
   * Before `load()`: takes an existing map in place of a new one; its size may be another. The caller keeps `map`.
   * Throws KernelError (EINVAL) when type, key, value or flags differ from the object's own definition: libbpf would take
   * it all the same, and the programs would read it wrongly.
   */
  useMap(name: string, map: BpfMap): void {
    const lib = native();
    const own = this.#map(name);
    const object = `${this.#name}:${name}`;
    const wanted = [
      lib.bpf_map__type(own),
      lib.bpf_map__key_size(own),
      lib.bpf_map__value_size(own),
      lib.bpf_map__map_flags(own),
    ];
    const { type, keySize, valueSize, flags } = map.info;
    const given = [mapTypeNumber(type), keySize, valueSize, flags];
    if (wanted.some((value, index) => value !== given[index]))
      throw new KernelError(
        "bpf_map__reuse_fd",
        ERRNO.EINVAL,
        object,
        `type, key, value, flags are ${given.join(", ")}, and ${wanted.join(", ")} in the object`,
      );
    check(lib.bpf_map__reuse_fd(own, map.fd), "bpf_map__reuse_fd", object);
  }

  /**
   * Before `load()`: creates a map whose elements no memory cgroup is charged for (native/uncharged.c). Without the right to do
   * so, `load()` creates it as any other, and the elements are charged to this process's memory cgroup.
   * @param procs the file cgroup.procs of the root memory cgroup
   * Gives whether it was created.
   */
  makeUncharged(name: string, procs: string): boolean {
    return native().kmesh_map_uncharged(this.#open(), this.#map(name), cString(procs)) >= 0;
  }

  /** Before `load()`: excludes a program, for kernels that lack a feature it needs. */
  skipProgram(name: string): void {
    const result = native().bpf_program__set_autoload(this.#program(name), 0);
    check(result, "bpf_program__set_autoload", `${this.#name}:${name}`);
  }

  /**
   * Creates the maps, verifies and loads the programs.
   * Throws KernelError; its message has the end of the verifier's log.
   */
  load(): void {
    takeLog();
    const result = native().bpf_object__load(this.#open());
    if (result < 0) throw failure("bpf_object__load", -result, this.#name);
  }

  /** After `load()`: a map, which the caller closes. */
  map(name: string): BpfMap {
    return BpfMap.adopt(duplicate(native().bpf_map__fd(this.#map(name)), `${this.#name}:${name}`));
  }

  /** After `load()`: a program, which the caller closes. */
  program(name: string): BpfProgram {
    return BpfProgram.adopt(
      duplicate(native().bpf_program__fd(this.#program(name)), `${this.#name}:${name}`),
    );
  }

  close(): void {
    if (this.#handle !== 0n) native().bpf_object__close(this.#handle);
    this.#handle = 0n;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #open(): bigint {
    if (this.#handle === 0n) throw new Error(`the object ${this.#name} is closed`);
    return this.#handle;
  }

  #map(name: string): bigint {
    const map = native().bpf_object__find_map_by_name(this.#open(), cString(name));
    if (map === 0n)
      throw new KernelError("bpf_object__find_map_by_name", ERRNO.ENOENT, `${this.#name}:${name}`);
    return map;
  }

  #program(name: string): bigint {
    const program = native().bpf_object__find_program_by_name(this.#open(), cString(name));
    if (program === 0n)
      throw new KernelError("bpf_object__find_program_by_name", ERRNO.ENOENT, `${this.#name}:${name}`);
    return program;
  }
}

export interface ProgramInfo {
  id: number;
  /** 16 hex digits over the instructions: equal tags mean equal code. */
  tag: string;
  /** 15 bytes at most. */
  name: string;
  /** enum bpf_prog_type. */
  type: number;
}

/** A loaded program. */
export class BpfProgram extends Descriptor {
  readonly info: ProgramInfo;

  private constructor(fd: number) {
    super(fd);
    const bytes = infoOf(fd, 80, "program");
    const [type = 0, id = 0] = new Uint32Array(bytes, 0, 2);
    this.info = {
      id,
      tag: Buffer.from(bytes, 8, 8).toString("hex"),
      name: fixedText(new Uint8Array(bytes, 64, 16)),
      type,
    };
  }

  /** Opens a pinned program. Throws KernelError: ENOENT when nothing is pinned there. */
  static fromPin(path: string): BpfProgram {
    return BpfProgram.adopt(check(native().bpf_obj_get(cString(path)), "bpf_obj_get", path));
  }

  /** Opens a loaded program by its id. Throws KernelError: ENOENT, or EPERM without CAP_SYS_ADMIN. */
  static fromId(id: number): BpfProgram {
    return BpfProgram.adopt(check(native().bpf_prog_get_fd_by_id(id), "bpf_prog_get_fd_by_id", String(id)));
  }

  /** Takes ownership of a program's file descriptor. Closes it and throws when it is no program. */
  static adopt(fd: number): BpfProgram {
    try {
      return new BpfProgram(fd);
    } catch (error) {
      native().kmesh_close(fd);
      throw error;
    }
  }

  protected get title(): string {
    return `the program ${this.info.name}`;
  }

  /**
   * Binds `map` to the program, which does not use it: the map can then be found through the program. Repeating it is
   * no error. Throws KernelError.
   */
  bind(map: BpfMap): void {
    check(native().bpf_prog_bind_map(this.fd, map.fd, null), "bpf_prog_bind_map", this.info.name);
  }

  /** Ids of the maps that the program uses or that are bound to it. Throws KernelError. */
  mapIds(): number[] {
    // The verifier allows 64 maps at most.
    const ids = new Uint32Array(new ArrayBuffer(64 * 4));
    const count = native().kmesh_program_maps(this.fd, ids, ids.length);
    return [...ids.subarray(0, check(count, "bpf_prog_get_info_by_fd", this.info.name))];
  }

  /**
   * Runs an iterator program once over all elements of `map`, and returns at the end. Its output is discarded. Throws
   * KernelError: EINVAL when it is no iterator of such maps.
   */
  walk(map: BpfMap): void {
    check(native().kmesh_walk_map(this.fd, map.fd), "bpf_iter_create", this.info.name);
  }

  /**
   * Runs a raw tracepoint program as the calling thread, without a tracepoint. Gives what it returns, as 32 bits without a
   * sign. Throws KernelError.
   */
  ask(first: number, second: number): number {
    const result = new Uint32Array(new ArrayBuffer(4));
    check(native().kmesh_ask(this.fd, first, second, result), "bpf_prog_test_run", this.info.name);
    return result[0] ?? 0;
  }

  /**
   * Runs a packet program (socket filter, tc) without a hook, `repeat` times over the same bytes. Other types, such as
   * those of cgroup hooks, have no such run (ENOTSUPP).
   * @param packet at least an Ethernet header
   * @returns its last return value, and the mean time of a run in nanoseconds
   */
  testRun(packet: Uint8Array, repeat = 1): { result: number; nanoseconds: number } {
    const result = new Uint32Array(new ArrayBuffer(4));
    const nanoseconds = new Uint32Array(new ArrayBuffer(4));
    check(
      native().kmesh_test_run(this.fd, packet, packet.length, repeat, result, nanoseconds),
      "bpf_prog_test_run",
      this.info.name,
    );
    return { result: result[0] ?? 0, nanoseconds: nanoseconds[0] ?? 0 };
  }

  /**
   * Runs a tc program once over a packet (at least an Ethernet header) without a hook.
   * @returns its return value, the packet that it left (2 KB at most), and the five words of `skb->cb`
   */
  testPacket(packet: Uint8Array): { result: number; packet: Uint8Array; cb: Uint32Array } {
    // struct __sk_buff; cb is its words 12 to 16.
    const context = new Uint32Array(new ArrayBuffer(SK_BUFF_WORDS * 4));
    const out = new Uint8Array(new ArrayBuffer(2048));
    const size = new Uint32Array(new ArrayBuffer(4));
    size[0] = out.length;
    const result = new Uint32Array(new ArrayBuffer(4));
    check(
      native().kmesh_test_packet(
        ...([this.fd, packet, packet.length, context, context.byteLength, out, size, result] as const),
      ),
      "bpf_prog_test_run",
      this.info.name,
    );
    return { result: result[0] ?? 0, packet: out.subarray(0, size[0]), cb: context.slice(12, 17) };
  }
}

/** Words of struct __sk_buff: the kernel refuses a shorter buffer. */
const SK_BUFF_WORDS = 64;

function duplicate(fd: number, object: string): number {
  if (fd < 0) throw new Error(`${object} is not loaded`);
  return check(native().kmesh_dup(fd), "fcntl", object);
}

function failure(call: string, errno: number, object: string): KernelError {
  const log = takeLog().split("\n").slice(-LOG_LINES).join("\n");
  return new KernelError(call, errno, object, log);
}
