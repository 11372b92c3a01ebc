import manifest from "../../package.json" with { type: "json" };

/** Set by build/compile: the version and the commit. */
declare const KMESH_VERSION: string | undefined;

/** "0.1.0+1a2b3c4d5e6f" in the single file, "0.1.0+source" when run from source. */
export const version: string =
  typeof KMESH_VERSION === "string" ? KMESH_VERSION : `${manifest.version}+source`;
