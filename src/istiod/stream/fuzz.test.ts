import { expect, test } from "bun:test";
import { encodeResponse, RecordingSink, ScriptedIstiod, until } from "../../../test/lab/scripted-istiod.ts";
import type { ResourceType } from "./sink.ts";
import type { StreamEvent } from "./status.ts";
import { IstiodStream } from "./stream.ts";

/** A small generator of repeatable numbers in [0, 1) (Park and Miller's). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 48_271) % 2_147_483_647;
    return state / 2_147_483_647;
  };
}

function mutate(bytes: Uint8Array, random: () => number): Uint8Array {
  const copy = Uint8Array.from(bytes);
  const at = () => Math.floor(random() * copy.length);
  const kind = random();
  if (kind < 0.25) return copy.subarray(0, at());
  if (kind < 0.35) return Uint8Array.from([...copy.subarray(0, at()), ...copy.subarray(at())]);
  for (let flips = 1 + Math.floor(random() * 4); flips > 0; flips--) {
    const position = at();
    copy[position] = (copy[position] ?? 0) ^ (1 << Math.floor(random() * 8));
  }
  return copy;
}

const GOOD: Record<ResourceType, Record<string, string>> = {
  cluster: { "outbound|80||a.shop": "eds a", "outbound|80||b.shop": "eds b" },
  endpoints: { a: "10.1.0.1", b: "10.1.0.2" },
  listener: { "10.0.0.1_80": "tcp a", "0.0.0.0_80": "rds 80" },
  route: { "80": "b" },
  names: { "": "a.shop=10.0.0.1" },
  address: {},
  authorization: {},
};

/** Remembers which of the good resources were taken away. */
class WatchfulSink extends RecordingSink {
  readonly lost: string[] = [];
  override remove(type: ResourceType, name: string): void {
    // Endpoints and routes go when what wants them changes; the others only when istiod says so, and it never did.
    const byName = type === "endpoints" || type === "route";
    if (!byName && GOOD[type][name] !== undefined) this.lost.push(`${type} ${name}`);
    super.remove(type, name);
  }
}

test("mutated responses never throw out of the stream and never lose what is stored", async () => {
  const random = randomFrom(20_261);
  const istiod = new ScriptedIstiod();
  const types = Object.keys(GOOD) as ResourceType[];
  istiod.onRequest = (stream, request) => {
    if (request.responseNonce !== "" || !request.type) return;
    stream.send(request.type, { resources: GOOD[request.type] });
  };
  await istiod.start();
  const sink = new WatchfulSink();
  const events: StreamEvent[] = [];
  const stream = new IstiodStream({
    istiod: `127.0.0.1:${istiod.port}`,
    security: { kind: "plaintext" },
    identity: { ips: ["10.0.0.5"], name: "vm1", namespace: "shop" },
    sink,
    on: (event) => events.push(event),
    backoff: { first: 1, longest: 2 },
    times: { answer: 50 },
  });
  try {
    stream.start();
    await until(() => sink.commits.length === 1, "the first commit");
    const responses = types.map((type) => encodeResponse(type, { resources: GOOD[type] }));
    let reconnects = 0;
    for (let round = 0; round < 1_500; round++) {
      const response = responses[round % responses.length];
      if (!response) break;
      if (!stream.status().connected) {
        reconnects++;
        await until(() => stream.status().connected, `a reconnect in round ${round}`);
      }
      istiod.last.sendRaw(mutate(response, random));
      if (round % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await until(() => stream.status().connected, "the end");
    expect(reconnects).toBeGreaterThan(0);
    expect(sink.lost).toEqual([]);

    // Once istiod makes sense again, all is as it was.
    for (const served of istiod.streams) served.close();
    await until(() => types.every((type) => holds(sink, type)), "what istiod really has");
    expect(events.filter((event) => event.kind === "failed")).toEqual([]);
    expect(events.some((event) => event.kind === "disconnected")).toBe(true);
  } finally {
    stream.stop();
    istiod.stop();
  }
}, 30_000);

const holds = (sink: RecordingSink, type: ResourceType) =>
  Object.entries(GOOD[type]).every(([name, text]) => sink.stored.get(`${type} ${name}`) === text);
