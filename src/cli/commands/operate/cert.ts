import { type Certificate, MalformedCertificate } from "../../../istiod/identity/certificate.ts";
import { type Chain, type Link, takeApart } from "../../../istiod/identity/certificate-chain.ts";
import type { CertificateStore } from "../../../istiod/identity/certificate-store.ts";
import { time } from "../../../istiod/identity/token.ts";
import { formatSpiffe } from "../../../istiod/spiffe.ts";
import { identityStore } from "../../../machine/identity-store.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, formatSpan, print, printJson } from "../../framework/output.ts";
import { foldersOf } from "../../framework/view.ts";

export const cert = command({
  name: "cert",
  about: "Show the machine's certificate, its chain and its roots",
  flags: { ...FOLDER_FLAGS, ...OUTPUT_FLAG },
  notes: "Needs no agent. Exit code 1 without a certificate, or when a part of the chain is not valid now.",
  examples: [["cert", "Show the certificate and its chain, with their validity"]],
  async run({ flags }) {
    const format = formatOf(flags);
    const store = identityStore(foldersOf(flags).stateDir);
    const certificate = load(store);
    const now = Date.now();
    const chain = takeApart(certificate, now);
    if (format === "json") printJson(asJson(store.folder, certificate, chain));
    else print(formatChain(store.folder, certificate, chain, now));
    return chain.valid ? EXIT.done : EXIT.failed;
  },
});

function load(store: CertificateStore): Certificate {
  let found: Certificate | undefined;
  try {
    found = store.load();
  } catch (error) {
    if (!(error instanceof MalformedCertificate)) throw error;
    throw new Failure(
      EXIT.failed,
      `the certificate in ${store.folder} can't be used: ${error.message}`,
      "The agent asks for a new one by itself; kmesh doctor shows what may prevent that.",
    );
  }
  if (found) return found;
  throw new Failure(
    EXIT.failed,
    `there is no certificate in ${store.folder}`,
    "The agent gets one with the token, and needs none with --plaintext; kmesh doctor shows what may prevent that.",
  );
}

/** The page, with a paragraph for each certificate. */
export function formatChain(
  folder: string,
  certificate: Pick<Certificate, "id">,
  { chain, roots }: Chain,
  now: number,
): string {
  const [own, ...between] = chain;
  const parts = [
    `identity   ${formatSpiffe(certificate.id)}\nkept in    ${folder}`,
    ...(own ? [formatLink("certificate", own, now)] : []),
    ...between.map((link) => formatLink("signed by", link, now)),
    ...roots.map((link) => formatLink("root", link, now)),
  ];
  return parts.join("\n\n");
}

function formatLink(what: string, link: Link, now: number): string {
  const { subject, names, issuer, serial, notBefore, notAfter, key, fingerprint } = link;
  const facts: [string, string][] = [
    ...(subject === "" ? [] : [["subject", subject] as [string, string]]),
    ...(names.length === 0 ? [] : [["names", names.join(", ")] as [string, string]]),
    ["issuer", issuer || "(nameless)"],
    ["valid", `${lifeOf(link, now)} (${time(notBefore)} to ${time(notAfter)})`],
    ["serial", serial],
    ["key", key],
    ["sha256", fingerprint],
  ];
  return [what, ...facts.map(([name, text]) => `  ${name.padEnd(9)}${text}`)].join("\n");
}

function lifeOf({ notBefore, notAfter }: Link, now: number): string {
  if (now < notBefore) return `NOT YET, in ${formatSpan(notBefore - now)}: is this machine's clock right?`;
  if (now >= notAfter) return `EXPIRED ${formatSpan(now - notAfter)} ago`;
  return `for ${formatSpan(notAfter - now)}`;
}

function asJson(folder: string, { id }: Certificate, { chain, roots, valid }: Chain): object {
  const link = ({ notBefore, notAfter, ...rest }: Link) => ({
    ...rest,
    notBefore: time(notBefore),
    notAfter: time(notAfter),
  });
  return { id: formatSpiffe(id), folder, valid, chain: chain.map(link), roots: roots.map(link) };
}
