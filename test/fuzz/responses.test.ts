/**
 * Real responses of istiod, damaged: neither the stream nor the compiler may throw, lose what they hold, or keep
 * what the damage brought once istiod makes sense again.
 *
 * received.jsonl is what `bun test/control-plane/dump.ts` wrote for sample.yaml.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ResourceType } from "../../src/istiod/stream/sink.ts";
import type { StreamEvent } from "../../src/istiod/stream/status.ts";
import { IstiodStream } from "../../src/istiod/stream/stream.ts";
import { isWildcard } from "../../src/istiod/stream/types.ts";
import { KernelNative } from "../../src/kernel-native/kernel-native.ts";
import type { Mesh } from "../../src/mesh/model.ts";
import { encodeResponse, ScriptedIstiod, until } from "../lab/scripted-istiod.ts";

type Resources = Record<string, Uint8Array>;

const RECORDED = new Map<ResourceType, Resources>();
for (const line of readFileSync(join(import.meta.dirname, "received.jsonl"), "utf8")
  .trim()
  .split("\n")) {
  const response: { type: ResourceType; resources: { name: string; base64: string }[] } = JSON.parse(line);
  const known = RECORDED.get(response.type) ?? {};
  for (const { name, base64 } of response.resources) known[name] = Buffer.from(base64, "base64");
  RECORDED.set(response.type, known);
}

/** Repeatable numbers in [0, 1) (Park and Miller's generator). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 48_271) % 2_147_483_647;
    return state / 2_147_483_647;
  };
}

/** A truncation, or a few flipped bits. */
function damage(bytes: Uint8Array, random: () => number): Uint8Array {
  const at = () => Math.floor(random() * bytes.length);
  if (random() < 0.1) return bytes.slice(0, at());
  const copy = bytes.slice();
  for (let flips = 1 + Math.floor(random() * 6); flips > 0; flips--) {
    const position = at();
    copy[position] = (copy[position] ?? 0) ^ (1 << Math.floor(random() * 8));
  }
  return copy;
}

/** The mesh as text: equal exactly when two meshes are. */
function textOf(mesh: Mesh): string {
  const sorted = (map: ReadonlyMap<string, unknown>) =>
    [...map].sort(([one], [other]) => (one < other ? -1 : 1));
  return JSON.stringify([sorted(mesh.frontends), sorted(mesh.clusters), sorted(mesh.splits), mesh.fallback]);
}

describe("damaged responses", () => {
  test.each([7, 20_261, 4_242])(
    "seed %i",
    async (seed) => {
      const random = randomFrom(seed);
      const istiod = new ScriptedIstiod();
      istiod.onRequest = (stream, request) => {
        const { type } = request;
        if (request.responseNonce !== "" || type === undefined) return;
        const known = RECORDED.get(type) ?? {};
        if (isWildcard(type)) return void stream.send(type, { resources: known });
        const names = request.resourceNamesSubscribe.filter((name) => known[name] !== undefined);
        const resources = Object.fromEntries(names.map((name) => [name, known[name] ?? ""]));
        if (names.length > 0) stream.send(type, { resources });
      };
      await istiod.start();
      let mesh = "";
      const failures: StreamEvent[] = [];
      let rejected = 0;
      const sink = new KernelNative({
        allowPlaintext: false,
        publish: (published) => {
          mesh = textOf(published);
        },
        lookup: () => new Promise(() => {}),
      });
      const stream = new IstiodStream({
        istiod: `127.0.0.1:${istiod.port}`,
        security: { kind: "plaintext" },
        identity: { ips: ["10.0.0.5"], name: "vm", namespace: "shop" },
        sink,
        backoff: { first: 1, longest: 2 },
        times: { answer: 50 },
        on: (event) => {
          if (event.kind === "failed") failures.push(event);
          if (event.kind === "rejected") rejected++;
        },
      });
      try {
        stream.start();
        await until(() => stream.status().synced, "the first snapshot");
        const before = mesh;
        expect(stream.status().rejected).toEqual([]);
        const responses = [...RECORDED].map(([type, resources]) => encodeResponse(type, { resources }));
        for (let round = 0; round < 600; round++) {
          await until(() => stream.status().connected, `a connection in round ${round}`);
          for (const response of responses.slice(round % 2)) istiod.last.sendRaw(damage(response, random));
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
        expect(failures).toEqual([]);
        expect(rejected).toBeGreaterThan(100);

        for (const served of istiod.streams) served.close();
        await until(() => mesh === before && stream.status().rejected.length === 0, "the mesh of before");
      } finally {
        stream.stop();
        istiod.stop();
        sink.close();
      }
    },
    60_000,
  );
});
