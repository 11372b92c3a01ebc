import { afterEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ServiceNotifier } from "./sd-notify.ts";

const PYTHON = "/usr/bin/python3";
const why = existsSync(PYTHON) ? undefined : `needs ${PYTHON}`;
if (why) console.warn(`skipped: sd_notify: ${why}`);

/** Plays the service manager: prints each datagram as one line of JSON. */
const RECEIVER = `
import json, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = sys.argv[1]
s.bind("\\0" + name[1:] if name.startswith("@") else name)
print(json.dumps("listening"), flush=True)
while True: print(json.dumps(s.recv(65536).decode()), flush=True)
`;

class Receiver {
  readonly #child: Bun.Subprocess<"ignore", "pipe", "inherit">;
  readonly #lines: AsyncIterator<string>;

  private constructor(address: string) {
    this.#child = Bun.spawn([PYTHON, "-c", RECEIVER, address], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "inherit",
    });
    this.#lines = lines(this.#child.stdout);
  }

  static async listen(address: string): Promise<Receiver> {
    const receiver = new Receiver(address);
    expect(await receiver.next()).toBe("listening");
    return receiver;
  }

  /** The next datagram. */
  async next(): Promise<string> {
    const { value } = await this.#lines.next();
    return JSON.parse(value);
  }

  async close(): Promise<void> {
    this.#child.kill();
    await this.#child.exited;
  }
}

async function* lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const part of stream) {
    text += decoder.decode(part, { stream: true });
    const whole = text.split("\n");
    text = whole.pop() ?? "";
    yield* whole;
  }
}

describe.skipIf(why !== undefined)("ServiceNotifier", () => {
  const warnings: string[] = [];
  const warn = (text: string) => void warnings.push(text);
  const cleanups: (() => Promise<void> | void)[] = [];
  afterEach(async () => {
    for (const clean of cleanups.splice(0).reverse()) await clean();
    warnings.length = 0;
  });

  async function receiver(address: string): Promise<Receiver> {
    const made = await Receiver.listen(address);
    cleanups.push(() => made.close());
    return made;
  }

  function folder(): string {
    const path = mkdtempSync(join(tmpdir(), "kmesh-notify-"));
    cleanups.push(() => rmSync(path, { recursive: true }));
    return path;
  }

  for (const kind of ["a path", "an abstract name"]) {
    test(`says the whole life of a service to ${kind}`, async () => {
      const address =
        kind === "a path" ? join(folder(), "notify") : `@kmesh-notify-${process.pid}-${performance.now()}`;
      const manager = await receiver(address);
      const service = new ServiceNotifier({ NOTIFY_SOCKET: address }, warn);
      expect(service.active).toBe(true);
      service.ready("Governing 3 services");
      expect(await manager.next()).toBe("READY=1\nSTATUS=Governing 3 services");
      service.status("Governing 3 services");
      service.status("two\nlines");
      expect(await manager.next()).toBe("STATUS=two lines");
      service.reloading();
      expect(await manager.next()).toBe("RELOADING=1");
      service.ready("again");
      expect(await manager.next()).toBe("READY=1\nSTATUS=again");
      service.stopping();
      expect(await manager.next()).toStartWith("STOPPING=1\nSTATUS=");
      expect(warnings).toEqual([]);
    });
  }

  test("signs of life come at half of WATCHDOG_USEC, from ready to stopping", async () => {
    const address = join(folder(), "notify");
    const manager = await receiver(address);
    const env = { NOTIFY_SOCKET: address, WATCHDOG_USEC: "400000", WATCHDOG_PID: String(process.pid) };
    const service = new ServiceNotifier(env, warn);
    expect(service.watchdogEvery).toBe(200);
    service.ready("up");
    expect(await manager.next()).toStartWith("READY=1");
    expect(await manager.next()).toBe("WATCHDOG=1");
    const begin = performance.now();
    for (let i = 0; i < 3; i++) expect(await manager.next()).toBe("WATCHDOG=1");
    const took = performance.now() - begin;
    expect(took).toBeGreaterThan(500);
    expect(took).toBeLessThan(1100);
    service.stopping();
    expect(await manager.next()).toStartWith("STOPPING=1");
    await Bun.sleep(300);
    service.status("after");
    expect(await manager.next()).toBe("STATUS=after");
  });

  test("a watchdog meant for another process is not fed", () => {
    const env = { NOTIFY_SOCKET: "/run/x", WATCHDOG_USEC: "400000", WATCHDOG_PID: "1" };
    expect(new ServiceNotifier(env, warn).watchdogEvery).toBeUndefined();
  });

  test("nobody asked: nothing is sent, nothing is complained of", () => {
    const service = new ServiceNotifier({ WATCHDOG_USEC: "400000" }, warn);
    expect(service.active).toBe(false);
    service.ready("up");
    service.stopping();
    expect(warnings).toEqual([]);
  });

  test("a manager that is gone is told of once and stops nothing", () => {
    const service = new ServiceNotifier({ NOTIFY_SOCKET: join(folder(), "gone") }, warn);
    service.ready("up");
    service.status("still up");
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toMatch(/can't be told READY=1: sendto\(.*\/gone\): ENOENT/);
  });

  test("an address that is no unix socket is refused with a word", () => {
    expect(new ServiceNotifier({ NOTIFY_SOCKET: "vsock:2:1234" }, warn).active).toBe(false);
    expect(warnings[0]).toContain("vsock:2:1234");
  });
});
