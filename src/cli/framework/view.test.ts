import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readFolders } from "../../config/config.ts";
import { sourcesOf } from "../../config/sources.ts";
import { foldersIn } from "./view.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-view-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const path = join(folder, "config.yaml");
/** The file in its default place, unless the operator has named it. */
const sources = (flags: Record<string, string> = {}, required = false) => ({
  ...sourcesOf(flags, {}),
  file: { path, required },
});

test("a broken file in the default place hides no mesh, and is named", () => {
  writeFileSync(path, "istiod: a: b\n");
  const said: string[] = [];
  expect(foldersIn(sources({ "run-dir": "/r" }), (text) => said.push(text))).toEqual({
    bpffs: "/sys/fs/bpf/kmesh",
    stateDir: "/var/lib/kmesh",
    runDir: "/r",
  });
  expect(said).toEqual([expect.stringMatching(/config\.yaml is not valid YAML.*default folders/)]);
});

test("a file that was named is needed, and so are right flags", () => {
  writeFileSync(path, "just text\n");
  const silent = () => {};
  expect(() => foldersIn(sources({}, true), silent)).toThrow("holds no settings");
  expect(() => foldersIn(sources({ "run-dir": "" }), silent)).toThrow("--run-dir");
});

test("the file's folders count when it is right", () => {
  writeFileSync(path, "run-dir: /other\nmode: wrong\n");
  const said: string[] = [];
  expect(foldersIn(sources(), (text) => said.push(text))).toEqual(readFolders(sources()));
  expect([foldersIn(sources(), () => {}).runDir, said]).toEqual(["/other", []]);
});
