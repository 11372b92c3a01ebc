import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, lchownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sourcesOf } from "../config/sources.ts";
import { examineFiles, unsafeConfig } from "./config-files.ts";

const isRoot = process.getuid?.() === 0;
const NOBODY = 65_534;
let folder: string;
let file: string;
let command: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-files-"));
  chmodSync(folder, 0o755);
  for (const name of ["etc", "bin"]) mkdirSync(join(folder, name));
  file = join(folder, "etc/config.yaml");
  command = join(folder, "bin/check");
  writeFileSync(command, "#!/bin/true\n", { mode: 0o755 });
  for (const name of ["ca.pem", "token"]) writeFileSync(join(folder, "etc", name), "", { mode: 0o600 });
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function examine(more: object = {}) {
  const { etc } = { etc: join(folder, "etc") };
  const settings = { istiod: "a:1", ca: join(etc, "ca.pem"), token: join(etc, "token"), ...more };
  writeFileSync(file, JSON.stringify(settings));
  const { config, problems, remarks } = examineFiles(sourcesOf({ config: file }, {}), "ignored");
  return {
    problems: problems.map(({ message, next }) => `${message} => ${next}`),
    remarks: remarks.map(({ text, cure }) => `${text} => ${cure}`),
    damage: unsafeConfig(config).map(({ what, cure }) => `${what} => ${cure}`),
  };
}

const probed = () => ({ "readiness-probe": { exec: { command: ["sh", command] } } });
const reset = (path: string, mode: number) => {
  chmodSync(path, mode);
  lchownSync(path, process.getuid?.() ?? 0, process.getgid?.() ?? 0);
};

describe("files that others may write", () => {
  test("a warning names each, with its command; with an exec probe it is a problem", () => {
    expect(examine(probed())).toEqual({ problems: [], remarks: [], damage: [] });
    const paths: [string, number][] = [
      [file, 0o644],
      [join(folder, "etc"), 0o755],
      [join(folder, "etc/ca.pem"), 0o600],
      [join(folder, "etc/token"), 0o600],
      [folder, 0o755],
    ];
    for (const [path, mode] of paths) {
      examine();
      chmodSync(path, mode | 0o022);
      const text = `${path} may be written by others (mode ${(mode | 0o022).toString(8)})`;
      const plain = examine();
      expect(plain).toEqual({
        problems: [],
        remarks: [
          `${text}: whoever writes there decides where this machine's connections go => chmod go-w ${path}`,
        ],
        damage: [`${text} => chmod go-w ${path}`],
      });
      const { problems, remarks } = examine(probed());
      expect(problems).toEqual([
        `${text}, and whoever writes there decides what the readiness-probe runs as root => chmod go-w ${path}`,
      ]);
      expect(remarks).toEqual([]);
      reset(path, mode);
    }
    for (const path of [command, join(folder, "bin")]) {
      chmodSync(path, 0o777);
      expect(examine(probed()).problems.join()).toContain(`${path} may be written by others (mode 777)`);
      expect(examine().remarks).toEqual([]);
      reset(path, 0o755);
    }
  });

  test("a folder like /tmp is as safe as its files; a missing file is nobody's", () => {
    chmodSync(join(folder, "etc"), 0o1777);
    expect(examine().remarks).toEqual([]);
    expect(examine({ token: join(folder, "etc/none") }).remarks).toEqual([]);
  });

  test.skipIf(!isRoot)("another user's file, folder or link", () => {
    lchownSync(join(folder, "etc"), NOBODY, NOBODY);
    expect(examine().remarks.join()).toContain(`etc belongs to user ${NOBODY}: whoever`);
    reset(join(folder, "etc"), 0o755);
    const link = join(folder, "etc/link.pem");
    symlinkSync("ca.pem", link);
    expect(examine({ ca: link }).remarks).toEqual([]);
    lchownSync(link, NOBODY, NOBODY);
    expect(examine({ ca: link }).remarks.join()).toEndWith(`=> chown -h root: ${link}`);
    // The target of the link is checked, too.
    const far = join(folder, "far");
    mkdirSync(far, { mode: 0o755 });
    chmodSync(far, 0o777);
    writeFileSync(join(far, "ca.pem"), "");
    rmSync(link);
    symlinkSync(join(far, "ca.pem"), link);
    expect(examine({ ca: link }).remarks.join()).toContain(`${far} may be written by others (mode 777)`);
  });
});

test("a root file with a private key in it", () => {
  writeFileSync(join(folder, "etc/ca.pem"), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
  expect(examine().remarks.join()).toContain("etc/ca.pem holds a private key beside the root certificates");
});

test("what the service can't see is a problem of its configuration, and a remark on another", () => {
  const examineAs = (hidden: "problem" | "remark" | "ignored") => {
    writeFileSync(
      file,
      JSON.stringify({
        istiod: "a:1",
        ca: "/root/none.pem",
        token: "/home/ann/token",
        "readiness-probe": { exec: { command: ["/root/check", "-v"] } },
        "state-dir": "/srv/kmesh",
      }),
    );
    const { problems, remarks } = examineFiles(sourcesOf({ config: file }, {}), hidden);
    return [problems.map(({ message }) => message), remarks.map(({ text }) => text)];
  };
  const [problems] = examineAs("problem");
  expect(problems).toEqual([
    `${file}, key ca: /root/none.pem can't be seen by kmesh.service (ProtectHome=yes hides /root)`,
    `${file}, key state-dir: /srv/kmesh can't be written to by kmesh.service (ProtectSystem=strict)`,
    `${file}, key token: /home/ann/token can't be seen by kmesh.service (ProtectHome=yes hides /home)`,
    `${file}, key readiness-probe: /root/check can't be seen by kmesh.service (ProtectHome=yes hides /root)`,
  ]);
  expect(examineAs("remark")[1]).toEqual([
    "/home/ann/token can't be seen by kmesh.service (ProtectHome=yes hides /home)",
    "/root/check can't be seen by kmesh.service (ProtectHome=yes hides /root)",
  ]);
  expect(examineAs("ignored")[1]).toEqual([]);
});
