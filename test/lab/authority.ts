/** For tests: a CA made with openssl, and certificates for workloads signed by it. */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export class Authority {
  readonly folder: string;
  readonly root: string;

  /** Creates a CA in a folder that the test removes, or uses an existing one (PEM). */
  constructor(folder: string, given?: { root: string; key: string }) {
    this.folder = folder;
    if (given) {
      writeFileSync(join(folder, "ca.pem"), given.root);
      writeFileSync(join(folder, "ca.key"), given.key, { mode: 0o600 });
      this.root = given.root;
      return;
    }
    const key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem";
    this.#openssl("req", "-x509", ...key.split(" "), "-days", "10", "-subj", "/O=test");
    this.root = this.#read("ca.pem");
  }

  /** A key and a certificate for `san`, such as URI:spiffe://..., from days ago to days ahead. */
  issue(san: string, days: { from?: number; to?: number } = {}): { key: string; chain: string } {
    writeFileSync(join(this.folder, "leaf.ext"), `subjectAltName=critical,${san}\n`);
    const key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr";
    this.#openssl("req", ...key.split(" "), "-subj", "/O=leaf");
    this.#sign("leaf", dateOf((days.from ?? -1) * 86_400), dateOf((days.to ?? 1) * 86_400));
    return { key: this.#read("leaf.key"), chain: this.#read("leaf.pem") };
  }

  /** Signs a request (PEM) for `san`; ignores the names in the request. Times in seconds from now. */
  sign(csr: string, san: string, times: { from: number; to: number }): string {
    writeFileSync(join(this.folder, "asked.csr"), csr);
    writeFileSync(join(this.folder, "asked.ext"), `subjectAltName=critical,${san}\n`);
    this.#sign("asked", dateOf(times.from), dateOf(times.to));
    return this.#read("asked.pem");
  }

  #sign(name: string, from: string, to: string): void {
    writeFileSync(join(this.folder, "index.txt"), "");
    const config =
      "[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\nrand_serial=yes\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\nunique_subject=no\n[p]\n";
    writeFileSync(join(this.folder, "ca.cnf"), config);
    const signer = ["-cert", "ca.pem", "-keyfile", "ca.key", "-batch", "-notext", "-extfile", `${name}.ext`];
    const times = ["-startdate", from, "-enddate", to];
    // An empty subject needs preserving; the policy drops what it does not know.
    this.#openssl(
      "ca",
      "-config",
      "ca.cnf",
      ...signer,
      ...times,
      "-subj",
      "/",
      "-in",
      `${name}.csr`,
      "-out",
      `${name}.pem`,
    );
  }

  #read(name: string): string {
    return readFileSync(join(this.folder, name), "utf8");
  }

  #openssl(...args: string[]): void {
    execFileSync("openssl", args, { cwd: this.folder, stdio: "pipe" });
  }
}

/** YYYYMMDDHHMMSSZ, so many seconds from now. */
function dateOf(offset: number): string {
  return `${new Date(Date.now() + offset * 1000).toISOString().replace(/[-:T]|\..*/g, "")}Z`;
}
