import { afterAll, describe, expect, test } from "bun:test";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { type Answer, type Lookup, type Question, Resolver, systemLookup } from "./resolver.ts";

const question = (host: string, more: Partial<Question> = {}): Question => ({
  host,
  family: 4,
  refresh: 60,
  respectTtl: true,
  ...more,
});

/** A resolver whose look-ups give what `answers` says, and what it announced. */
function scripted(...answers: (string[] | Error)[]) {
  const changed: string[][] = [];
  let asked = 0;
  const lookup: Lookup = async () => {
    const answer = answers[Math.min(asked++, answers.length - 1)] ?? [];
    if (answer instanceof Error) throw answer;
    return { addresses: answer, ttl: 1 };
  };
  const resolver = new Resolver({ lookup, changed: (hosts) => changed.push([...hosts].sort()) });
  return { resolver, changed, asked: () => asked };
}

async function until(condition: () => boolean, milliseconds = 5_000): Promise<void> {
  const deadline = Date.now() + milliseconds;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error("it did not happen in time");
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

describe("what is known", () => {
  test("nothing, then the canonical and sorted answer, announced once", async () => {
    const { resolver, changed } = scripted(["10.0.0.2", "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.3"]);
    expect(resolver.known("a", 4)).toEqual({ addresses: undefined, tried: false });
    resolver.keep([question("a"), question("a", { refresh: 5 })]);
    await until(() => changed.length > 0);
    expect(resolver.known("a", 4)).toMatchObject({
      addresses: ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
      tried: true,
    });
    expect(changed).toEqual([["a"]]);
    resolver.close();
  });

  test("both families of one host, answered in the same turn, are announced once", async () => {
    const { resolver, changed } = scripted(["10.0.0.1"], ["fd00::1"]);
    resolver.keep([question("a"), question("a", { family: 6 })]);
    await until(() => resolver.known("a", 4).tried && resolver.known("a", 6).tried);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(changed).toEqual([["a"]]);
    resolver.close();
  });

  test("the last good answer is kept through failures and through a name that vanished", async () => {
    const { resolver, asked, changed } = scripted(["10.0.0.1"], new Error("timeout"), [], ["10.0.0.2"]);
    resolver.keep([question("a")]);
    await until(() => asked() >= 3);
    expect(resolver.known("a", 4).addresses).toEqual(["10.0.0.1"]);
    await until(() => changed.length === 2);
    expect(resolver.known("a", 4).addresses).toEqual(["10.0.0.2"]);
    resolver.close();
  });

  test("tried and unknown when nobody can say; known and empty when there is no such name", async () => {
    const failing = scripted(new Error("timeout"));
    failing.resolver.keep([question("a")]);
    await until(() => failing.changed.length > 0);
    expect(failing.resolver.known("a", 4)).toMatchObject({ addresses: undefined, tried: true });
    failing.resolver.close();
    const empty = scripted([]);
    empty.resolver.keep([question("a")]);
    await until(() => empty.changed.length > 0);
    expect(empty.resolver.known("a", 4)).toMatchObject({ addresses: [], tried: true });
    empty.resolver.close();
  });

  test("the TTL counts, or the refresh rate", async () => {
    const slow = scripted(["10.0.0.1"]);
    slow.resolver.keep([question("a", { respectTtl: false, refresh: 60 })]);
    const quick = scripted(["10.0.0.1"]);
    quick.resolver.keep([question("a")]);
    await until(() => quick.asked() === 2);
    expect(slow.asked()).toBe(1);
    slow.resolver.close();
    quick.resolver.close();
  });

  test("a name that is no longer kept is forgotten and no longer asked for", async () => {
    const { resolver, asked, changed } = scripted(["10.0.0.1"]);
    resolver.keep([question("a")]);
    await until(() => changed.length === 1);
    resolver.keep([]);
    expect(resolver.known("a", 4).tried).toBe(false);
    await new Promise((resolve) => setTimeout(resolve, 1_100));
    expect(asked()).toBe(1);
    resolver.close();
  });

  test("a thousand names are asked for a few at a time, and all of them", async () => {
    let running = 0;
    let most = 0;
    const known = new Set<string>();
    const resolver = new Resolver({
      lookup: async () => {
        most = Math.max(most, ++running);
        await new Promise((resolve) => setImmediate(resolve));
        running--;
        return { addresses: ["10.0.0.1"], ttl: 60 };
      },
      changed: (hosts) => {
        for (const host of hosts) known.add(host);
      },
    });
    resolver.keep(Array.from({ length: 1_000 }, (_, i) => question(`h${i}`)));
    await until(() => known.size === 1_000);
    expect(most).toBe(32);
    resolver.close();
  });

  test("after close an answer under way is ignored", async () => {
    let answer: (answer: Answer) => void = () => undefined;
    let announced = 0;
    const resolver = new Resolver({
      lookup: () =>
        new Promise((resolve) => {
          answer = resolve;
        }),
      changed: () => announced++,
    });
    resolver.keep([question("a")]);
    resolver.close();
    answer({ addresses: ["10.0.0.1"], ttl: 1 });
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(announced).toBe(0);
    expect(resolver.known("a", 4).addresses).toBeUndefined();
  });
});

describe("a real name server", async () => {
  // Answers A of a.test, AAAA of six.test, NXDOMAIN for gone.test, SERVFAIL for all else.
  const server = createSocket("udp4");
  server.on("message", (query, from) => {
    const labels: string[] = [];
    let at = 12;
    for (let length = query[at] ?? 0; length > 0; length = query[at] ?? 0) {
      labels.push(query.toString("latin1", at + 1, at + 1 + length));
      at += 1 + length;
    }
    const name = labels.join(".").toLowerCase();
    const type = query.readUInt16BE(at + 1);
    const body = query.subarray(12, at + 5);
    const record = (data: number[]) =>
      Buffer.from([0xc0, 12, 0, type, 0, 1, 0, 0, 0, 77, 0, data.length, ...data]);
    const answers: Buffer[] = [];
    let code = 2;
    if (name === "a.test") {
      code = 0;
      if (type === 1) answers.push(record([192, 0, 2, 1]), record([192, 0, 2, 2]));
    } else if (name === "six.test") {
      code = 0;
      if (type === 28) answers.push(record([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]));
    } else if (name === "gone.test") code = 3;
    const head = Buffer.from([
      query[0] ?? 0,
      query[1] ?? 0,
      0x81,
      0x80 | code,
      0,
      1,
      0,
      answers.length,
      0,
      0,
      0,
      0,
    ]);
    server.send(Buffer.concat([head, body, ...answers]), from.port, from.address);
  });
  server.bind(0, "127.0.0.1");
  await once(server, "listening");
  afterAll(() => server.close());
  const lookup = systemLookup([`127.0.0.1:${server.address().port}`]);

  test("addresses and their TTL", async () => {
    expect(await lookup("a.test", 4)).toEqual({ addresses: ["192.0.2.1", "192.0.2.2"], ttl: 77 });
    expect(await lookup("six.test", 6)).toEqual({ addresses: ["2001:db8::9"], ttl: 77 });
  });

  test("no address of that family, no such name", async () => {
    expect((await lookup("a.test", 6)).addresses).toEqual([]);
    expect((await lookup("gone.test", 4)).addresses).toEqual([]);
  });

  test("a server that fails is no answer", async () => {
    expect(lookup("broken.test", 4)).rejects.toThrow();
  });

  test("the hosts file, which the server does not know", async () => {
    expect((await lookup("localhost", 4)).addresses).toEqual(["127.0.0.1"]);
  });
});
