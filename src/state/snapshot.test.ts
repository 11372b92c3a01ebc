import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { addCluster, addFrontend, endpoint } from "../../test/datapath/mesh.ts";
import { MESH_ENCODING } from "../mesh/encoding.ts";
import { emptyMesh, type Mesh } from "../mesh/model.ts";
import {
  BadSnapshot,
  hasSnapshot,
  readSnapshot,
  removeSnapshot,
  SnapshotDraft,
  type SnapshotKey,
  setSnapshotAside,
  snapshotFile,
} from "./snapshot.ts";

const BOND: SnapshotKey = {
  machine: "0123456789abcdef0123456789abcdef",
  settings: { namespace: "shop", "allow-plaintext": false },
};

let folder: string;
let file: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-snapshot-"));
  file = snapshotFile(folder);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function small(): Mesh {
  const mesh = emptyMesh();
  addCluster(mesh, "c", [endpoint("10.0.0.1:80"), endpoint("[fd00::1]:81", { healthy: false })]);
  addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "c" });
  return mesh;
}

function write(mesh: Mesh, bond = BOND): number {
  const draft = new SnapshotDraft(folder, mesh, bond);
  while (draft.step());
  draft.publish();
  return draft.size;
}

/** The file with a field of its head changed, and a checksum that fits. */
function withHead(change: (head: Buffer) => void): void {
  const bytes = readFileSync(file);
  change(bytes);
  createHash("sha256").update(bytes.subarray(96)).update(bytes.subarray(0, 64)).digest().copy(bytes, 64);
  writeFileSync(file, bytes);
}

const refusal = (bond: { machine: string; settings?: SnapshotKey["settings"] } = BOND): string => {
  try {
    readSnapshot(folder, bond);
  } catch (error) {
    if (error instanceof BadSnapshot) return error.message;
    throw error;
  }
  return "used";
};

test("what was written is read", () => {
  expect(readSnapshot(folder, BOND)).toBeUndefined();
  const before = Date.now();
  const size = write(small());
  const found = readSnapshot(folder, BOND);
  expect(found?.mesh).toEqual(small());
  expect(found?.writtenAt.getTime()).toBeGreaterThanOrEqual(before);
  expect(found?.writtenAt.getTime()).toBeLessThanOrEqual(Date.now());
  expect(statSync(file)).toMatchObject({ size });
  expect(statSync(file).mode & 0o777).toBe(0o600);
  expect(readdirSync(folder)).toEqual(["snapshot"]);
  expect(readFileSync(file).includes(BOND.machine)).toBe(false);
});

test("a draft that is not published changes nothing, and a leftover of one is replaced", () => {
  write(small());
  const before = readFileSync(file);
  const draft = new SnapshotDraft(folder, emptyMesh(), BOND);
  draft.step();
  expect(readFileSync(file)).toEqual(before);
  expect(readdirSync(folder).sort()).toEqual(["snapshot", "snapshot.new"]);
  // As if killed here.
  expect(readSnapshot(folder, BOND)?.mesh).toEqual(small());
  write(emptyMesh());
  expect(readdirSync(folder)).toEqual(["snapshot"]);
  expect(readSnapshot(folder, BOND)?.mesh).toEqual(emptyMesh());
  draft.discard();
});

test("a link at the unfinished one's place is not followed", () => {
  const other = join(folder, "other");
  writeFileSync(other, "x");
  symlinkSync(other, `${file}.new`);
  write(small());
  expect(readFileSync(other, "utf8")).toBe("x");
  expect(readSnapshot(folder, BOND)?.mesh).toEqual(small());
});

test("with any byte changed it is refused", () => {
  write(small());
  const bytes = readFileSync(file);
  for (let at = 0; at < bytes.length; at++) {
    for (const bit of [0x01, 0x80]) {
      const flipped = Buffer.from(bytes);
      flipped[at] = (bytes[at] ?? 0) ^ bit;
      writeFileSync(file, flipped);
      expect({ at, refusal: refusal() }).not.toEqual({ at, refusal: "used" });
    }
  }
});

test("cut anywhere, or with more behind it, it is refused", () => {
  write(small());
  const bytes = readFileSync(file);
  for (let length = 0; length < bytes.length; length++) {
    writeFileSync(file, bytes.subarray(0, length));
    expect({ length, refusal: refusal() }).toEqual({ length, refusal: "it is cut off" });
  }
  writeFileSync(file, Buffer.concat([bytes, bytes]));
  expect(refusal()).toBe("its checksum is wrong");
});

describe("what it is refused for", () => {
  beforeEach(() => void write(small()));

  test("another machine", () => {
    expect(refusal({ ...BOND, machine: "f".repeat(32) })).toContain("another machine");
  });

  test("other settings, which are named", () => {
    const settings = { ...BOND.settings, "allow-plaintext": true, network: "n2" };
    expect(refusal({ ...BOND, settings })).toBe(
      "it was made with other settings: allow-plaintext was false, now true, network was not set, now n2",
    );
    expect(readSnapshot(folder, { machine: BOND.machine })?.mesh).toEqual(small());
  });

  test("a newer version, an unknown one", () => {
    withHead((head) => head.writeUInt32LE(MESH_ENCODING + 1, 8));
    expect(refusal()).toBe(
      `a newer kmesh wrote it (format ${MESH_ENCODING + 1}, this one reads ${MESH_ENCODING})`,
    );
    withHead((head) => head.writeUInt32LE(0, 8));
    expect(refusal()).toBe("its format 0 is not known");
  });

  test("a head that contradicts its content", () => {
    for (const length of [0, 1, 10_000]) {
      withHead((head) => head.writeUInt32LE(length, 12));
      expect(refusal()).toContain("it holds no");
    }
    expect(refusal({ machine: BOND.machine })).toContain("it holds no mesh");
  });

  test("no snapshot at all", () => {
    writeFileSync(file, "x".repeat(1000));
    expect(refusal()).toBe("it is no snapshot of kmesh");
    rmSync(file);
    mkdirSync(file);
    expect(refusal()).toBe("it is a folder, not a regular file");
  });
});

test("set aside, over an older one; removed with all that belongs to it", () => {
  writeFileSync(`${file}.bad`, "older");
  writeFileSync(file, "newer");
  expect(hasSnapshot(folder)).toBe(true);
  expect(setSnapshotAside(folder)).toBe(`${file}.bad`);
  expect(readFileSync(`${file}.bad`, "utf8")).toBe("newer");
  writeFileSync(file, "");
  writeFileSync(`${file}.new`, "");
  writeFileSync(join(folder, "agent.lock"), "");
  expect(removeSnapshot(folder)).toBe(true);
  expect(readdirSync(folder)).toEqual(["agent.lock"]);
  expect(hasSnapshot(folder)).toBe(false);
  expect(removeSnapshot(folder)).toBe(false);
  expect(removeSnapshot(join(folder, "missing"))).toBe(false);
  expect(existsSync(join(folder, "missing"))).toBe(false);
});
