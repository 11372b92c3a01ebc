import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, rmdirSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { BPFFS, ensureBpffs, unpin } from "./bpffs.ts";
import { cgroup2Root, cgroupId, cgroupLevel, cgroupPath } from "./cgroup.ts";
import { CGROUP_LINK, CgroupLink, HOOKS } from "./link.ts";
import { BpfObject, BpfProgram } from "./object.ts";

const isRoot = process.getuid?.() === 0;
const SAMPLE = join(import.meta.dir, "../../dist/test/sample.bpf.o");

describe.skipIf(!isRoot)("CgroupLink", () => {
  const pins = join(BPFFS, `kmesh-test-link-${process.pid}`);
  const cgroup = isRoot ? join(cgroup2Root(), `kmesh-test-${process.pid}`) : "";
  let server: Server;
  let port = 0;
  let object: BpfObject;
  let counting: BpfProgram;
  let refusing: BpfProgram;

  /** A connection made by a process inside the cgroup: "" or what the shell says of it. */
  async function connect(): Promise<string> {
    const script = `echo $$ >${cgroup}/cgroup.procs && exec 3<>/dev/tcp/127.0.0.1/${port}`;
    const shell = Bun.spawn(["bash", "-c", script], { stderr: "pipe" });
    await shell.exited;
    return new Response(shell.stderr).text();
  }

  function counted(): bigint {
    const map = object.map("counts");
    const value = new Uint8Array(map.info.valueSize);
    map.lookup(new Uint8Array(4), value);
    map.close();
    return new DataView(value.buffer).getBigUint64(0, true);
  }

  beforeAll(async () => {
    ensureBpffs(pins);
    mkdirSync(cgroup);
    server = createServer((socket) => socket.end()).listen(0, "127.0.0.1");
    await new Promise((ready) => server.once("listening", ready));
    const address = server.address();
    port = typeof address === "object" && address !== null ? address.port : 0;
    object = BpfObject.open(readFileSync(SAMPLE), "sample");
    object.skipProgram("unverifiable");
    object.load();
    counting = object.program("count_connect");
    refusing = object.program("refuse_connect");
  });

  afterAll(() => {
    unpin(pins);
    counting?.close();
    refusing?.close();
    object?.close();
    server?.close();
    rmdirSync(cgroup);
  });

  test("knows the cgroup as the kernel does", () => {
    expect(cgroupLevel(cgroup)).toBe(1);
    expect(cgroupLevel(cgroup2Root())).toBe(0);
    expect(cgroupPath(cgroupId(cgroup))).toBe(cgroup);
    expect(cgroupPath(0xfff_ffff_ffffn)).toBeUndefined();
    expect(() => cgroupLevel("/tmp")).toThrow("not a cgroup2 folder");
  });

  test("runs while it is held, changes its program without a gap, ends with its last holder", async () => {
    const before = counted();
    let link = CgroupLink.attach(counting, cgroup, "connect4");
    try {
      expect(await connect()).toBe("");
      expect(counted()).toBe(before + 1n);
      expect(link.info()).toEqual({
        id: link.info().id,
        type: CGROUP_LINK,
        programId: counting.info.id,
        cgroupId: cgroupId(cgroup),
        attachType: HOOKS.connect4,
      });

      const path = join(pins, "connect4");
      link.pin(path);
      link.close();
      link.close();
      expect(await connect()).toBe("");
      expect(counted()).toBe(before + 2n);

      link = CgroupLink.fromPin(path);
      link.update(refusing);
      expect(link.info().programId).toBe(refusing.info.id);
      expect(await connect()).toContain("not permitted");
      link.update(counting);
      expect(await connect()).toBe("");
      expect(counted()).toBe(before + 3n);

      unpin(path);
    } finally {
      link.close();
    }
    expect(await connect()).toBe("");
    expect(counted()).toBe(before + 3n);
  });

  test("a pinned program is found again, with the same tag", () => {
    const path = join(pins, "program");
    counting.pin(path);
    const again = BpfProgram.fromPin(path);
    expect(again.info).toEqual(counting.info);
    expect(again.info.tag).toMatch(/^[0-9a-f]{16}$/);
    expect(again.info.tag).not.toBe(refusing.info.tag);
    again.close();
  });

  test("says what could not be attached, and where", () => {
    expect(() => CgroupLink.attach(counting, `${cgroup}/none`, "connect4")).toThrow(
      `open(${cgroup}/none): ENOENT`,
    );
    expect(() => CgroupLink.attach(counting, cgroup, "connect6")).toThrow(
      `bpf_link_create(connect6 at ${cgroup}): EINVAL`,
    );
  });
});
