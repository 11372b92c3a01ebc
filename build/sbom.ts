/**
 * The components of a release as CycloneDX 1.6: the npm packages in the executable by package-lock.json, the runtime, and
 * the C libraries of libbpf.so.
 */
import { createHash } from "node:crypto";

/** The used fields of an entry of package-lock.json's `packages`. */
export interface LockedPackage {
  version?: string;
  license?: string;
  integrity?: string;
  dev?: boolean;
  dependencies?: Record<string, string>;
}

export interface Lock {
  packages: Record<string, LockedPackage>;
}

/** A component that is not an npm package. */
export interface Library {
  name: string;
  version: string;
  /** SPDX. */
  license: string;
  purl: string;
}

export interface Component {
  type: "application" | "library" | "platform";
  "bom-ref": string;
  name: string;
  version: string;
  purl?: string;
  licenses: [{ expression: string }];
  hashes?: { alg: "SHA-512" | "SHA-256"; content: string }[];
}

export interface Sbom {
  bomFormat: "CycloneDX";
  specVersion: "1.6";
  serialNumber: string;
  version: 1;
  metadata: { timestamp: string; component: Component };
  components: Component[];
  dependencies: { ref: string; dependsOn: string[] }[];
}

const FOLDER = "node_modules/";

/** The packages without development dependencies, by their path in `packages`. */
export function runtimePackages({ packages }: Lock): [path: string, found: LockedPackage][] {
  return Object.entries(packages)
    .filter(([path, { dev }]) => path.startsWith(FOLDER) && dev !== true)
    .sort(([one], [other]) => (one < other ? -1 : 1));
}

/** The name of the package at a path of `packages`. */
export function packageName(path: string): string {
  return path.slice(path.lastIndexOf(FOLDER) + FOLDER.length);
}

/**
 * `time` is the time of the commit, seconds since 1970. Equal arguments give equal bills with equal serial numbers. Throws
 * when package-lock.json lacks a version or a dependency.
 */
export function sbomOf(version: string, time: number, lock: Lock, libraries: readonly Library[]): Sbom {
  const { packages } = lock;
  const refs = new Map(
    runtimePackages(lock).map(([path, { version }]) => [path, npmUrl(packageName(path), version)]),
  );
  const npm = runtimePackages(lock).map(([path, { version = "", license, integrity }]): Component => {
    const ref = refs.get(path) ?? "";
    return {
      type: "library",
      "bom-ref": ref,
      name: packageName(path),
      version,
      purl: ref,
      licenses: [{ expression: license ?? "NOASSERTION" }],
      ...(integrity?.startsWith("sha512-")
        ? {
            hashes: [
              {
                alg: "SHA-512",
                content: Buffer.from(integrity.slice("sha512-".length), "base64").toString("hex"),
              },
            ],
          }
        : {}),
    };
  });
  const others = libraries.map(({ name, version, license, purl }): Component => {
    return {
      type: name === "bun" ? "platform" : "library",
      "bom-ref": purl,
      name,
      version,
      purl,
      licenses: [{ expression: license }],
    };
  });
  const dependsOn = (path: string, names: Record<string, string> = {}): string[] =>
    Object.keys(names)
      .map((name) => {
        const found = resolved(packages, path, name);
        const ref = found === undefined ? undefined : refs.get(found);
        if (ref === undefined) throw new Error(`package-lock.json has no ${name} for ${path || "kmesh"}`);
        return ref;
      })
      .sort();
  const own = `kmesh@${version}`;
  const components = dedupe([...npm, ...others]);
  const dependencies = [
    {
      ref: own,
      dependsOn: [...dependsOn("", packages[""]?.dependencies), ...libraries.map(({ purl }) => purl)],
    },
    ...runtimePackages(lock).map(([path, { dependencies }]) => {
      return { ref: refs.get(path) ?? "", dependsOn: dependsOn(path, dependencies) };
    }),
  ];
  const metadata = {
    timestamp: new Date(time * 1000).toISOString(),
    component: {
      type: "application" as const,
      "bom-ref": own,
      name: "kmesh",
      version,
      licenses: [{ expression: packages[""]?.license ?? "NOASSERTION" }] as [{ expression: string }],
    },
  };
  return {
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    serialNumber: serialNumber(JSON.stringify({ metadata, components })),
    version: 1,
    metadata,
    components,
    dependencies,
  };
}

/** The same package at two paths is one component. */
function dedupe(components: readonly Component[]): Component[] {
  return [...new Map(components.map((component) => [component["bom-ref"], component])).values()];
}

/** Where Node would find `name` from `path`; undefined when the lock file has none (an optional peer). */
function resolved(packages: Lock["packages"], path: string, name: string): string | undefined {
  for (let from = path; ; ) {
    const candidate = `${from === "" ? "" : `${from}/`}${FOLDER}${name}`;
    if (packages[candidate]) return candidate;
    if (from === "") return undefined;
    const cut = from.lastIndexOf(`/${FOLDER}`);
    from = cut < 0 ? "" : from.slice(0, cut);
  }
}

/** A package URL: https://github.com/package-url/purl-spec, type npm. */
function npmUrl(name: string, version = ""): string {
  return `pkg:npm/${name.replace("@", "%40")}@${version}`;
}

/** A UUID of version 8 (RFC 9562) made of a hash: equal bills have equal numbers. */
function serialNumber(text: string): string {
  const hash = createHash("sha256").update(text).digest();
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x80;
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80;
  const hex = hash.toString("hex");
  return `urn:uuid:${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`;
}
