import {
  closeSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { codeOrReason } from "../../errors/reason.ts";
import { syncPath } from "../../files/replace-file.ts";
import { type Certificate, MalformedCertificate, readCertificate } from "./certificate.ts";

const CURRENT = "current";
const KEY = "key.pem";
const CHAIN = "cert-chain.pem";
const ROOTS = "root-cert.pem";
const MACHINE = "machine";

/**
 * Stores a certificate across reboots: FOLDER/current/{key.pem,cert-chain.pem,root-cert.pem}, readable by root alone.
 * `current` is a symbolic link to a folder. The new folder is complete and synced before the link is replaced, so a
 * crash at any moment leaves one whole certificate, the old or the new. The file `machine` beside them identifies the
 * machine, so that a copy of the folder on another machine is rejected.
 */
export class CertificateStore {
  readonly folder: string;
  readonly #machine: string | undefined;

  /** `machine` identifies this machine; it must be no secret. Without it the certificate is not bound to a machine. */
  constructor(folder: string, machine?: string) {
    this.folder = folder;
    this.#machine = machine;
  }

  /** The stored certificate; undefined when there is none. Throws MalformedCertificate when it can't be used. */
  load(): Certificate | undefined {
    const current = join(this.folder, CURRENT);
    const read = (name: string) => readFileSync(join(current, name), "utf8");
    let files: [string, string, string];
    try {
      readlinkSync(current);
      files = [read(KEY), read(CHAIN), read(ROOTS)];
    } catch (error) {
      const path = error instanceof Error && "path" in error ? error.path : current;
      const code = codeOrReason(error);
      if (path === current && code === "ENOENT") return undefined;
      throw new MalformedCertificate(`${String(path)} can't be read (${code})`);
    }
    const owner = readIfThere(join(current, MACHINE));
    if (owner !== undefined && owner !== this.#machine)
      throw new MalformedCertificate("it is another machine's (/etc/machine-id differs)");
    return readCertificate(...files);
  }

  /** Replaces the stored certificate. Throws the file system's Error; the old certificate then stays. */
  save(certificate: Certificate): void {
    mkdirSync(this.folder, { recursive: true, mode: 0o700 });
    const fresh = mkdtempSync(join(this.folder, "cert-"));
    try {
      write(join(fresh, KEY), certificate.key);
      write(join(fresh, CHAIN), certificate.chain);
      write(join(fresh, ROOTS), certificate.roots);
      if (this.#machine !== undefined) write(join(fresh, MACHINE), this.#machine);
      syncPath(fresh);
      const link = `${fresh}.link`;
      symlinkSync(fresh.slice(this.folder.length + 1), link);
      renameSync(link, join(this.folder, CURRENT));
      syncPath(this.folder);
    } catch (error) {
      rmSync(fresh, { recursive: true, force: true });
      rmSync(`${fresh}.link`, { force: true });
      throw error;
    }
    this.#sweep(fresh);
  }

  /** Removes the folders of earlier certificates and of interrupted writes. */
  #sweep(kept: string): void {
    for (const name of readdirSync(this.folder)) {
      const path = join(this.folder, name);
      if (name.startsWith("cert-") && path !== kept) rmSync(path, { recursive: true, force: true });
    }
  }
}

/** Versions of kmesh that did not bind the certificate to a machine wrote no such file. */
function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

function write(path: string, text: string): void {
  const file = openSync(path, "wx", 0o600);
  try {
    writeFileSync(file, text);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}
