/** The type information (BTF) of a compiled BPF object: how the C compiler laid its structs out. */

/** A field of a struct; of an array, `size` is one element's and `count` how many. */
export interface Field {
  offset: number;
  size: number;
  count?: number;
  /** The name of the struct or enum that it is. */
  of?: string;
}

export interface Layout {
  size: number;
  fields: Record<string, Field>;
}

export interface MapLayout {
  /** enum bpf_map_type. */
  type: number;
  keySize: number;
  valueSize: number;
  maxEntries: number;
  flags: number;
  key?: string;
  value?: string;
  /** The template of a map-in-map. */
  inner?: MapLayout;
}

export interface ObjectLayout {
  structs: Record<string, Layout>;
  enums: Record<string, Record<string, number>>;
  maps: Record<string, MapLayout>;
}

const KIND = {
  int: 1,
  pointer: 2,
  array: 3,
  struct: 4,
  union: 5,
  enum: 6,
  forward: 7,
  typedef: 8,
  volatile: 9,
  const: 10,
  restrict: 11,
  function: 12,
  prototype: 13,
  variable: 14,
  section: 15,
  float: 16,
  declTag: 17,
  typeTag: 18,
  enum64: 19,
} as const;

interface Member {
  name: string;
  type: number;
  /** In bits, from the start of the struct. */
  offset: number;
  /** Bits of a bit field, else 0. */
  bits: number;
}

interface Type {
  kind: number;
  name: string;
  /** Bytes, where the kind has a size. */
  size: number;
  /** The type referred to, where the kind refers to one. */
  target: number;
  /** Elements of an array. */
  count: number;
  members: Member[];
  values: Record<string, number>;
}

/** Bytes of a section of a little-endian 64-bit ELF file. Throws when there is none. */
function elfSection(file: DataView<ArrayBuffer>, wanted: string): DataView<ArrayBuffer> {
  const table = Number(file.getBigUint64(40, true));
  const entrySize = file.getUint16(58, true);
  const header = (index: number): { name: number; offset: number; size: number } => {
    const at = table + index * entrySize;
    return {
      name: file.getUint32(at, true),
      offset: Number(file.getBigUint64(at + 24, true)),
      size: Number(file.getBigUint64(at + 32, true)),
    };
  };
  const names = header(file.getUint16(62, true));
  for (let index = 0; index < file.getUint16(60, true); index++) {
    const { name, offset, size } = header(index);
    if (textAt(file, names.offset + name) === wanted)
      return new DataView(file.buffer, file.byteOffset + offset, size);
  }
  throw new Error(`no section ${wanted}: compile with -g`);
}

function textAt(view: DataView<ArrayBuffer>, offset: number): string {
  let end = offset;
  while (view.getUint8(end) !== 0) end++;
  return new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + offset, end - offset));
}

function parseTypes(btf: DataView<ArrayBuffer>): Type[] {
  if (btf.getUint16(0, true) !== 0xeb9f) throw new Error("not a BTF section");
  const header = btf.getUint32(4, true);
  const start = header + btf.getUint32(8, true);
  const end = start + btf.getUint32(12, true);
  const strings = header + btf.getUint32(16, true);
  const text = (offset: number): string => textAt(btf, strings + offset);

  const types: Type[] = [{ kind: 0, name: "void", size: 0, target: 0, count: 0, members: [], values: {} }];
  for (let at = start; at < end; ) {
    const info = btf.getUint32(at + 4, true);
    const kind = (info >>> 24) & 0x1f;
    const length = info & 0xffff;
    const flag = info >>> 31 === 1;
    const sizeOrType = btf.getUint32(at + 8, true);
    const type: Type = {
      kind,
      name: text(btf.getUint32(at, true)),
      size: sizeOrType,
      target: sizeOrType,
      count: 0,
      members: [],
      values: {},
    };
    at += 12;
    switch (kind) {
      case KIND.int:
      case KIND.variable:
      case KIND.declTag:
        at += 4;
        break;
      case KIND.array:
        type.target = btf.getUint32(at, true);
        type.count = btf.getUint32(at + 8, true);
        at += 12;
        break;
      case KIND.struct:
      case KIND.union:
        for (let index = 0; index < length; index++, at += 12) {
          const offset = btf.getUint32(at + 8, true);
          type.members.push({
            name: text(btf.getUint32(at, true)),
            type: btf.getUint32(at + 4, true),
            offset: flag ? offset & 0xffffff : offset,
            bits: flag ? offset >>> 24 : 0,
          });
        }
        break;
      case KIND.enum:
        for (let index = 0; index < length; index++, at += 8)
          type.values[text(btf.getUint32(at, true))] = flag
            ? btf.getInt32(at + 4, true)
            : btf.getUint32(at + 4, true);
        break;
      case KIND.enum64:
        for (let index = 0; index < length; index++, at += 12)
          type.values[text(btf.getUint32(at, true))] =
            btf.getUint32(at + 4, true) + btf.getUint32(at + 8, true) * 2 ** 32;
        break;
      case KIND.prototype:
        at += length * 8;
        break;
      case KIND.section:
        for (let index = 0; index < length; index++, at += 12)
          type.members.push({
            name: "",
            type: btf.getUint32(at, true),
            offset: btf.getUint32(at + 4, true) * 8,
            bits: 0,
          });
        break;
    }
    types.push(type);
  }
  return types;
}

/**
 * What a BPF object says about its maps, and the structs in their keys and values and in its global variables (with all
 * that they hold), and its enums.
 * @param image the .bpf.o file
 * Throws when it has no BTF, or a struct has what a layout can't express (a bit field).
 */
export function readLayout(image: Uint8Array): ObjectLayout {
  const copy = new Uint8Array(image).buffer;
  const types = parseTypes(elfSection(new DataView(copy), ".BTF"));
  const layout: ObjectLayout = { structs: {}, enums: {}, maps: {} };

  const at = (id: number): Type => {
    const type = types[id];
    if (type === undefined) throw new Error(`BTF type ${id} is missing`);
    return type;
  };
  /** Through typedefs and qualifiers; an anonymous struct takes the name of its typedef. */
  const resolve = (id: number): Type => {
    let type = at(id);
    let name = "";
    while (
      [KIND.typedef, KIND.const, KIND.volatile, KIND.restrict, KIND.typeTag].some(
        (kind) => kind === type.kind,
      )
    ) {
      if (type.kind === KIND.typedef) name = type.name;
      type = at(type.target);
    }
    return type.name === "" && name !== "" ? { ...type, name } : type;
  };
  const sizeOf = (type: Type): number => {
    if (type.kind === KIND.pointer) return 8;
    if (type.kind === KIND.array) return type.count * sizeOf(resolve(type.target));
    return type.size;
  };

  /** Adds a type, if it has a name to be found by, and what it holds. Gives that name. */
  const add = (type: Type): string | undefined => {
    if (type.kind === KIND.array) return add(resolve(type.target));
    if (type.kind === KIND.enum || type.kind === KIND.enum64) {
      // NAME___FLAVOUR is another name for a kernel's type, relocated at load time: no part of our layout.
      if (type.name !== "" && !type.name.includes("___")) layout.enums[type.name] = type.values;
      return type.name === "" ? undefined : type.name;
    }
    if ((type.kind !== KIND.struct && type.kind !== KIND.union) || type.name === "") return undefined;
    layout.structs[type.name] ??= { size: type.size, fields: fieldsOf(type, 0) };
    return type.name;
  };
  /** The members of anonymous structs and unions count as the outer one's own, as in C. */
  const fieldsOf = (struct: Type, base: number): Record<string, Field> => {
    const fields: Record<string, Field> = {};
    for (const member of struct.members) {
      if (member.bits !== 0)
        throw new Error(`struct ${struct.name}: the bit field ${member.name} has no offset`);
      const offset = base + member.offset / 8;
      let type = resolve(member.type);
      if (member.name === "") {
        Object.assign(fields, fieldsOf(type, offset));
        continue;
      }
      let count = 1;
      const isArray = type.kind === KIND.array;
      for (; type.kind === KIND.array; type = resolve(type.target)) count *= type.count;
      const of = add(type);
      fields[member.name] = {
        offset,
        size: sizeOf(type),
        ...(isArray ? { count } : {}),
        ...(of === undefined ? {} : { of }),
      };
    }
    return fields;
  };

  /** A map's definition: numbers are the lengths of arrays that are pointed to, types are pointed to themselves. */
  const mapOf = (definition: Type): MapLayout => {
    const map: MapLayout = { type: 0, keySize: 0, valueSize: 0, maxEntries: 0, flags: 0 };
    for (const member of definition.members) {
      const type = resolve(member.type);
      if (member.name === "values") {
        map.valueSize = 4;
        const element = resolve(type.target);
        const target = element.kind === KIND.pointer ? resolve(element.target) : element;
        if (target.kind === KIND.struct) map.inner = mapOf(target);
        continue;
      }
      if (type.kind !== KIND.pointer) continue;
      const target = resolve(type.target);
      const number = target.kind === KIND.array ? target.count : 0;
      if (member.name === "type") map.type = number;
      else if (member.name === "key_size") map.keySize = number;
      else if (member.name === "value_size") map.valueSize = number;
      else if (member.name === "max_entries") map.maxEntries = number;
      else if (member.name === "map_flags") map.flags = number;
      else if (member.name === "key" || member.name === "value") {
        map[member.name === "key" ? "keySize" : "valueSize"] = sizeOf(target);
        const name = add(target);
        if (name !== undefined) map[member.name] = name;
      }
    }
    return map;
  };

  for (const type of types) {
    if (type.kind === KIND.enum || type.kind === KIND.enum64) add(type);
    if (type.kind !== KIND.section) continue;
    for (const { type: id } of type.members) {
      const variable = at(id);
      const target = resolve(variable.target);
      if (type.name === ".maps") layout.maps[variable.name] = mapOf(target);
      else add(target);
    }
  }
  return layout;
}
