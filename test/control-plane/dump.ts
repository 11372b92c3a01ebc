/**
 * Shows what the real istiod sends to a sidecar node for some objects:
 *
 *     bun test/control-plane/dump.ts OUT [OBJECTS.yaml] [MESHCONFIG as JSON]
 *
 * Writes into the folder OUT:
 *   config_dump.json   istiod's own view, readable (all clusters, listeners, routes, endpoints)
 *   received.jsonl     every delta response as it came: {type, version, removed, resources: [{name, base64}]}
 *   names.txt          type and name of every resource, in their order
 */
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseAllDocuments } from "yaml";
import { NetworkNamespace } from "../lab/namespace.ts";
import { output } from "../lab/process.ts";
import { binaries, ControlPlane } from "./control-plane.ts";
import type { KubeObject } from "./kube.ts";

const [out, objects = join(import.meta.dirname, "sample.yaml"), meshConfig = "{}"] = process.argv.slice(2);
if (out === undefined) {
  console.error("usage: bun test/control-plane/dump.ts OUT [OBJECTS.yaml] [MESHCONFIG]");
  process.exit(2);
}
mkdirSync(out, { recursive: true });
const built = binaries();
if ("missing" in built) {
  console.error(built.missing);
  process.exit(3);
}
const namespace = await NetworkNamespace.create("dump");
try {
  const plane = await ControlPlane.start({
    binaries: built.folder,
    netns: namespace.path,
    namespaces: ["shop"],
    meshConfig: JSON.parse(meshConfig) as Record<string, unknown>,
  });
  try {
    const documents = parseAllDocuments(readFileSync(objects, "utf8"));
    await plane.kube.apply(...documents.map((document) => document.toJS() as KubeObject));
    const recorder = join(import.meta.dirname, "record.ts");
    const dump = join(plane.folder, "istiod.sock");
    console.log(
      await output([process.execPath, recorder, `127.0.0.1:${plane.ports.grpc}`, out, dump], {
        netns: namespace.path,
      }),
    );
  } finally {
    await plane.stop();
  }
} finally {
  await namespace.remove();
}
