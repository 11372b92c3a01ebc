import { expect, test } from "bun:test";
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { TestMesh } from "../../../test/lab/mesh-member.ts";
import { CertificateStore } from "../../istiod/identity/certificate-store.ts";
import { MeshCredentials } from "./mesh-credentials.ts";

test("why there is no certificate; files that can't be read any more leave the last one in use, with the reason", () => {
  const mesh = new TestMesh();
  const folder = join(mkdtempSync(join(mesh.folder, "state-")), "identity");
  const store = new CertificateStore(folder);
  const lines: string[] = [];
  const credentials = new MeshCredentials(store, (text) => lines.push(text));
  try {
    expect(credentials.status()).toEqual({
      valid: false,
      rotations: 0,
      trouble: "there is no certificate yet",
    });
    expect(() => credentials.current()).toThrow(
      "this machine has no certificate: there is no certificate yet",
    );
    writeFileSync(folder, "");
    credentials.refresh();
    expect(credentials.status().trouble).toContain("ENOTDIR");
    rmSync(folder);
    mesh.renew(store, "app");
    credentials.refresh();
    expect(credentials.status()).toMatchObject({ id: mesh.id("app"), valid: true });
    expect(credentials.status().trouble).toBeUndefined();
    renameSync(folder, `${folder}.away`);
    writeFileSync(folder, "");
    for (let i = 0; i < 3; i++) credentials.refresh();
    expect(credentials.status()).toMatchObject({ valid: true, trouble: expect.stringContaining("ENOTDIR") });
    expect(credentials.current().id).toBe(mesh.id("app"));
    rmSync(folder);
    credentials.refresh();
    expect(credentials.status()).toMatchObject({ valid: true, trouble: "the files are gone" });
    renameSync(`${folder}.away`, folder);
    credentials.refresh();
    expect(credentials.status()).toMatchObject({ valid: true, rotations: 0 });
    expect(credentials.status().trouble).toBeUndefined();
    // Each change is logged once, and no key.
    expect(lines.length).toBe(4);
    expect(lines.join("\n")).not.toMatch(/PRIVATE KEY|BEGIN/);
  } finally {
    credentials.close();
    mesh.close();
  }
});
