import { describe, expect, test } from "bun:test";
import { constants } from "node:os";
import { Book } from "../../bench/continuity/ledger/book.ts";
import { FLAW, KIND, MadeLedger, NOBODY, TakenLedger } from "../../bench/continuity/ledger/records.ts";
import { Validity } from "../../bench/continuity/ledger/validity.ts";

const SERVICES = ["shop:80", "cart:80", "closed:80", "dead:80", "secret:80", "impostor:80"];
const [SHOP, CART, CLOSED, DEAD, SECRET, IMPOSTOR] = [0, 1, 2, 3, 4, 5];
const [A, B, C, E, F] = [0, 1, 2, 4, 5];
/** The services of the endpoints. */
const OWNERS = [SHOP, SHOP, CART, CART, SECRET, IMPOSTOR];
const ENDPOINTS = OWNERS.map((service, i) => ({ address: `127.1.0.${i + 1}`, port: 9000, service }));

interface Entry {
  serial: number;
  service?: number;
  endpoint?: number;
  began?: number;
  took?: number;
  /** Until its end, ns. */
  total?: number;
  kind?: number;
  error?: number;
  flaws?: number;
  /** Bytes; twice as many come back. */
  sent?: number;
}

function made(...entries: Entry[]): MadeLedger {
  const view = new DataView(new ArrayBuffer(entries.length * 40));
  entries.forEach((entry, i) => {
    const { serial, service = SHOP, endpoint = A, began = 0, took = 10, kind = KIND.short } = entry;
    const at = i * 40;
    view.setBigUint64(at, (1n << 40n) | BigInt(serial), true);
    view.setBigUint64(at + 8, BigInt(began), true);
    view.setUint32(at + 16, took, true);
    view.setUint32(at + 20, (entry.total ?? 0) / 1000, true);
    view.setUint16(at + 24, service, true);
    view.setUint16(at + 26, endpoint, true);
    view.setUint16(at + 28, entry.error ?? 0, true);
    view.setUint8(at + 30, kind);
    view.setUint8(at + 31, entry.flaws ?? 0);
    view.setUint32(at + 32, entry.sent ?? 0, true);
    view.setUint32(at + 36, (entry.sent ?? 0) * 2, true);
  });
  return new MadeLedger(new Uint8Array(view.buffer));
}

function taken(...entries: { serial: number; endpoint?: number; flaws?: number }[]): TakenLedger[] {
  const view = new DataView(new ArrayBuffer(entries.length * 16));
  entries.forEach(({ serial, endpoint = A, flaws = 0 }, i) => {
    view.setBigUint64(i * 16, (1n << 40n) | BigInt(serial), true);
    view.setUint16(i * 16 + 10, endpoint, true);
    view.setUint16(i * 16 + 14, flaws, true);
  });
  return [new TakenLedger(new Uint8Array(view.buffer))];
}

function bookOf(validity = new Validity(OWNERS)): Book {
  validity.pushed(SHOP, [A, B], 0);
  validity.pushed(CART, [C], 0);
  const refuses = (service: number) => service === CLOSED;
  const fails = (service: number) => service === DEAD;
  const tunnelled = (service: number) => service === SECRET || service === IMPOSTOR;
  const impostor = (service: number) => service === IMPOSTOR;
  validity.pushed(SECRET, [E], 0);
  validity.pushed(IMPOSTOR, [F], 0);
  return new Book(
    { services: SERVICES, endpoints: ENDPOINTS, refuses, fails, tunnelled, impostor },
    validity,
  );
}

const NO_BYTES = { connectRefused: 0, neverConnected: 0, sent: 0, received: 0 };

/** What a kernel counted that saw `redirected` connections to the shop. */
function kernel(redirected: number, more: { refused?: number; live?: [string, number][] } = {}) {
  const live = new Map(more.live);
  return {
    services: new Map([
      ["shop:80", { redirected, refused: 0, failed: 0, other: 0 }],
      ["closed:80", { redirected: 0, refused: more.refused ?? 0, failed: 0, other: 0 }],
    ]),
    live,
    clusterLive: [...live.values()].reduce((sum, count) => sum + count, 0),
    isFlushed: true,
    traffic: {
      opened: redirected,
      ended: redirected - [...live.values()].reduce((sum, count) => sum + count, 0),
      refused: more.refused ?? 0,
      ...NO_BYTES,
    },
  };
}

const CLEAN = { failed: 0, misrouted: 0, ledgerErrors: 0, counterErrors: 0, wrongIdentity: 0 };

describe("validity", () => {
  test("an endpoint may serve from the push that brings it to the moment when its removal was seen", () => {
    const validity = new Validity(OWNERS);
    expect(validity.fault(SHOP, A, 0, 10)).toBe("removed");
    validity.pushed(SHOP, [A], 100);
    expect(validity.fault(SHOP, A, 89, 99)).toBe("removed");
    expect(validity.fault(SHOP, A, 95, 105)).toBeUndefined();
    validity.pushed(SHOP, [B], 200);
    // Until the tables were seen to hold the push, both are right.
    expect(validity.fault(SHOP, A, 250, 260)).toBeUndefined();
    expect(validity.fault(SHOP, B, 250, 260)).toBeUndefined();
    validity.applied(300);
    expect(validity.fault(SHOP, A, 299, 310)).toBeUndefined();
    expect(validity.fault(SHOP, A, 300, 310)).toBe("removed");
    expect(validity.fault(SHOP, B, 300, 310)).toBeUndefined();
    validity.pushed(SHOP, [A, B], 400);
    expect(validity.fault(SHOP, A, 350, 399)).toBe("removed");
    expect(validity.fault(SHOP, A, 350, 401)).toBeUndefined();
  });

  test("what was pushed while nobody applied is valid beside what was before", () => {
    const validity = new Validity(OWNERS);
    validity.pushed(SHOP, [A], 0);
    validity.applied(10);
    validity.pushed(SHOP, [B], 20);
    validity.pushed(SHOP, [A], 30);
    validity.applied(40);
    expect(validity.fault(SHOP, B, 35, 36)).toBeUndefined();
    expect(validity.fault(SHOP, B, 41, 42)).toBe("removed");
    expect(validity.fault(SHOP, A, 41, 42)).toBeUndefined();
  });

  test("another service's endpoint is never right", () => {
    const validity = new Validity(OWNERS);
    validity.pushed(CART, [C], 0);
    expect(validity.fault(SHOP, C, 5, 6)).toBe("another service");
    expect(validity.fault(CART, C, 5, 6)).toBeUndefined();
  });
});

describe("a book", () => {
  test("finds nothing where nothing is wrong", () => {
    const book = bookOf();
    const watched: string[] = [];
    book.take(
      [
        made(
          { serial: 1 },
          { serial: 2, kind: KIND.opened, endpoint: B },
          {
            serial: 3,
            service: CLOSED,
            endpoint: NOBODY,
            error: constants.errno.ECONNREFUSED,
            flaws: FLAW.noConnect | FLAW.atOnce,
          },
          { serial: 4, service: NOBODY, kind: KIND.direct },
        ),
      ],
      taken({ serial: 1 }, { serial: 2, endpoint: B }, { serial: 4 }),
      (kind, began, took) => watched.push(`${kind} ${began} ${took}`),
    );
    book.compare(kernel(2, { refused: 1, live: [["127.1.0.2 9000", 1]] }));
    expect(book.complaints).toEqual([]);
    const nothing = { unanswered: 0, tunnelled: 0, cut: 0, impostors: 0 };
    expect(book.sums).toEqual({ made: 1, opened: 1, refused: 1, direct: 1, ...nothing, ...CLEAN });
    expect(watched).toEqual(["service 0 10", "service 0 10", "direct 0 10"]);
    book.take([made({ serial: 2, kind: KIND.closed, endpoint: B })], taken());
    book.compare(kernel(2, { refused: 1 }));
    expect(book.sums).toMatchObject(CLEAN);
    expect(book.open).toBe(0);
  });

  test("sees a connection that another service's endpoint answered", () => {
    const book = bookOf();
    book.take([made({ serial: 1, endpoint: C })], taken({ serial: 1, endpoint: C }));
    book.compare(kernel(1));
    expect(book.sums).toMatchObject({ ...CLEAN, misrouted: 1 });
    expect(book.complaints).toEqual(["a connection to shop:80 met 127.1.0.3 port 9000: another service"]);
  });

  test("sees a connection that a removed endpoint answered, and none that began before the removal was seen", () => {
    const validity = new Validity(OWNERS);
    const book = bookOf(validity);
    validity.pushed(SHOP, [A], 100);
    validity.applied(200);
    const entries = [150, 199, 200, 300].map((began, serial) => ({ serial, endpoint: B, began }));
    book.take([made(...entries)], taken(...entries));
    expect(book.sums).toMatchObject({ ...CLEAN, misrouted: 2 });
  });

  test("sees connections that fail, are cut or bring wrong bytes", () => {
    const book = bookOf();
    const { ECONNRESET, ENETUNREACH } = constants.errno;
    book.take(
      [
        made(
          { serial: 1, endpoint: NOBODY, error: ENETUNREACH, flaws: FLAW.noConnect | FLAW.atOnce },
          { serial: 2, kind: KIND.closed, error: ECONNRESET, flaws: FLAW.noAnswer },
          { serial: 3, flaws: FLAW.wrongBytes },
          { serial: 4, flaws: FLAW.wrongPeer },
          {
            serial: 5,
            endpoint: NOBODY,
            error: constants.errno.ECONNREFUSED,
            flaws: FLAW.noConnect | FLAW.atOnce,
          },
        ),
      ],
      taken({ serial: 3 }, { serial: 4 }),
    );
    expect(book.sums).toMatchObject({ ...CLEAN, failed: 5 });
    expect(book.complaints).toContain("a connection failed: to shop:80: ENETUNREACH, refused at once");
    expect(book.complaints).toContain(
      "a long connection was cut: to shop:80 at 127.1.0.1 port 9000: ECONNRESET, not answered",
    );
  });

  test("expects nobody where nobody listens, and the kernel to count it", () => {
    const book = bookOf();
    const nobody = { endpoint: NOBODY, error: constants.errno.ECONNREFUSED, flaws: FLAW.noConnect };
    book.take([made({ ...nobody, serial: 1, service: DEAD }, { ...nobody, serial: 2 })], taken());
    expect(book.sums).toMatchObject({ ...CLEAN, unanswered: 1, failed: 1 });
    const count = { redirected: 1, refused: 0, failed: 1, other: 0 };
    const traffic = { opened: 2, ended: 2, refused: 0, ...NO_BYTES, connectRefused: 2 };
    const services = new Map([
      ["dead:80", count],
      ["shop:80", count],
    ]);
    book.compare({ services, live: new Map(), clusterLive: 0, traffic, isFlushed: true });
    expect(book.sums.counterErrors).toBe(0);
    services.set("dead:80", { ...count, failed: 2 });
    book.compare({ services, live: new Map(), clusterLive: 0, traffic, isFlushed: true });
    expect(book.sums.counterErrors).toBe(1);
    // Refused, and said to have timed out.
    book.compare({
      ...{ services, live: new Map(), clusterLive: 0, isFlushed: true },
      traffic: { ...traffic, connectRefused: 1, neverConnected: 1 },
    });
    expect(book.sums.counterErrors).toBe(3);
  });

  test("compares what the machine accepted by port and caller, and bytes once all is over", () => {
    const book = bookOf();
    const one = {
      port: 8081,
      remote: "172.31.0.11",
      opened: 2,
      closed: 2,
      received: 7,
      sent: 9,
      retransmits: 0,
    };
    const other = { ...one, remote: "fd00:76::11", retransmits: 1 };
    book.compareAccepted({ accepted: [other, one], isFlushed: true }, [one, other]);
    expect(book.sums.counterErrors).toBe(0);
    const open = { ...one, opened: 3 };
    book.compareAccepted({ accepted: [{ ...open, received: 6 }, other], isFlushed: true }, [open, other]);
    expect(book.sums.counterErrors).toBe(0);
    book.compareAccepted({ accepted: [one, other], isFlushed: true }, [open, other]);
    expect(book.sums.counterErrors).toBe(1);
    // Where nothing is flushed, connections that live are not there yet.
    book.compareAccepted({ accepted: [other], isFlushed: false }, [open, other]);
    expect(book.sums.counterErrors).toBe(1);
    // The open one is over: back to no difference, but a byte is missing.
    book.compareAccepted({ accepted: [{ ...one, sent: 8 }, other], isFlushed: true }, [one, other]);
    expect(book.sums.counterErrors).toBe(3);
    // Rows that were retired have no caller: sums are compared.
    const retired = { ...one, remote: "" };
    book.compareAccepted({ accepted: [retired, other], isFlushed: true }, [one, other]);
    expect(book.sums.counterErrors).toBe(3);
    book.compareAccepted({ accepted: [{ ...retired, opened: 1 }, other], isFlushed: true }, [one, other]);
    expect(book.sums.counterErrors).toBe(4);
  });

  test("expects each byte once all connections are over", () => {
    const book = bookOf();
    const long = { serial: 2, kind: KIND.opened, sent: 64 };
    book.take([made({ serial: 1, sent: 64 }, long)], taken({ serial: 1 }, { serial: 2 }));
    book.take([made({ serial: 2, kind: KIND.closed, sent: 640 })], taken());
    const over = kernel(2);
    book.compare({ ...over, traffic: { ...over.traffic, sent: 704, received: 1408 } });
    expect(book.sums.counterErrors).toBe(0);
    book.compare({ ...over, traffic: { ...over.traffic, sent: 704, received: 1407 } });
    expect(book.sums.counterErrors).toBe(1);
  });

  test("lets a tunnel that was killed cut its own connections, and no more", () => {
    const book = bookOf();
    const second = 1e9;
    const reset = { error: constants.errno.ECONNRESET, flaws: FLAW.noAnswer, service: SECRET };
    const crash = { from: 10 * second, to: 10.1 * second, most: 3 };
    book.crashed(crash);
    const at = (began: number, ended: number) => ({
      began: began * second,
      total: (ended - began) * second,
    });
    const cut = [
      { serial: 1, ...reset, ...at(1, 10.05), kind: KIND.closed, endpoint: E },
      { serial: 2, ...reset, ...at(9.99, 10.05), endpoint: NOBODY },
      // A server lost it, too.
      { serial: 3, ...reset, ...at(10.05, 10.1), endpoint: NOBODY },
    ];
    book.take([made(...cut)], taken({ serial: 3, endpoint: E, flaws: FLAW.noAnswer }));
    expect(book.sums).toMatchObject({ ...CLEAN, cut: 3 });
    // One more than it carried; and what may not be cut at all.
    book.take([made({ serial: 4, ...reset, ...at(9, 10.05), endpoint: NOBODY })], taken());
    expect(book.sums).toMatchObject({ ...CLEAN, cut: 3, failed: 1 });
    book.crashed({ ...crash, most: 100 });
    const others = [
      // Begun after it, ended before it, ended long after it, not through the tunnel, wrong bytes.
      { serial: 5, ...reset, ...at(10.2, 10.3), endpoint: NOBODY },
      { serial: 6, ...reset, ...at(9, 9.9), endpoint: NOBODY },
      { serial: 7, ...reset, ...at(9, 19), endpoint: NOBODY },
      { serial: 8, ...reset, ...at(9, 10.05), endpoint: NOBODY, service: SHOP },
      { serial: 9, ...reset, ...at(9, 10.05), endpoint: E, flaws: FLAW.wrongBytes },
    ];
    book.take([made(...others)], taken({ serial: 10, endpoint: E, flaws: FLAW.noAnswer }));
    expect(book.sums).toMatchObject({ ...CLEAN, cut: 3, failed: 6, ledgerErrors: 1 });
  });

  test("counts what ends with the second of two crashes to the second, also when it began while the first tunnel died", () => {
    const book = bookOf();
    const second = 1e9;
    const reset = { error: constants.errno.ECONNRESET, flaws: FLAW.noAnswer, service: SECRET };
    const at = (began: number, ended: number) => ({ began: began * second, total: (ended - began) * second });
    book.crashed({ from: 10 * second, to: 10.2 * second, most: 1 });
    book.take([made({ serial: 1, ...reset, ...at(1, 10.05), kind: KIND.closed, endpoint: E })], taken());
    book.crashed({ from: 11.5 * second, to: 11.6 * second, most: 2 });
    const later = [2, 3].map((serial) => ({ serial, ...reset, ...at(10.1, 11.55), endpoint: NOBODY }));
    book.take([made(...later)], taken({ serial: 3, endpoint: E, flaws: FLAW.noAnswer }));
    expect(book.sums).toMatchObject({ ...CLEAN, cut: 3 });
    // The second one carried no more.
    book.take([made({ serial: 4, ...reset, ...at(10.1, 11.55), endpoint: NOBODY })], taken());
    expect(book.sums).toMatchObject({ ...CLEAN, cut: 3, failed: 1 });
  });

  test("sees a tunnel that takes somebody else for the peer", () => {
    const book = bookOf();
    const reset = { error: constants.errno.ECONNRESET, flaws: FLAW.noAnswer, endpoint: NOBODY };
    book.take([made({ serial: 1, ...reset, service: IMPOSTOR })], taken());
    expect(book.sums).toMatchObject({ ...CLEAN, impostors: 1 });
    book.take(
      [made({ serial: 2, service: IMPOSTOR, endpoint: F }, { serial: 3, ...reset, service: SECRET })],
      taken({ serial: 2, endpoint: F }),
    );
    expect(book.sums).toMatchObject({ ...CLEAN, impostors: 1, wrongIdentity: 1, failed: 1 });
  });

  test("counts a reset that comes before the client has seen its connection made as one failure behind the tunnel", () => {
    const book = bookOf();
    const reset = { error: constants.errno.ECONNRESET, service: IMPOSTOR, endpoint: NOBODY };
    book.take(
      [made({ serial: 1, ...reset, flaws: FLAW.noAnswer }, { serial: 2, ...reset, flaws: FLAW.noConnect })],
      taken(),
    );
    expect(book.sums).toMatchObject({ ...CLEAN, impostors: 2 });
    const counts = kernel(0);
    counts.services.set("impostor:80", { redirected: 2, refused: 0, failed: 2, other: 0 });
    book.compare({ ...counts, traffic: { ...counts.traffic, opened: 2, ended: 2 } });
    expect(book.complaints).toEqual([]);
  });

  test("expects failures behind the tunnel again from the first look after a crash on", () => {
    const book = bookOf();
    const look = (failed: number) => {
      const counts = kernel(0);
      counts.services.set("secret:80", { redirected: 0, refused: 0, failed, other: 0 });
      book.compare(counts);
    };
    look(0);
    book.crashed({ from: 1, to: 2, most: 0 });
    look(3);
    look(3);
    expect(book.complaints).toEqual([]);
    look(4);
    expect(book.complaints).toEqual(["the kernel counts secret:80: failed 4, the ledgers 3"]);
  });

  test("sees a refusing service that answers", () => {
    const book = bookOf();
    book.take([made({ serial: 1, service: CLOSED })], taken({ serial: 1 }));
    expect(book.sums).toMatchObject({ misrouted: 1 });
  });

  test("sees two ends that tell different things", () => {
    const book = bookOf();
    book.take(
      [made({ serial: 1 }, { serial: 2 })],
      taken({ serial: 1, endpoint: B }, { serial: 3 }, { serial: 4, flaws: FLAW.wrongBytes }),
    );
    // 1 was taken by another, 2 by nobody; nobody made 3; 4 was broken.
    expect(book.sums).toMatchObject({ ...CLEAN, ledgerErrors: 4 });
  });

  test("sees a count that is one off, each once", () => {
    const book = bookOf();
    book.take([made({ serial: 1 })], taken({ serial: 1 }));
    book.compare(kernel(2));
    expect(book.sums.counterErrors).toBe(3);
    book.compare(kernel(2));
    expect(book.sums.counterErrors).toBe(3);
    book.compare(kernel(1));
    expect(book.sums.counterErrors).toBe(6);
    // One live connection too many: at the endpoint, in the sum of the clusters, and among the ended ones.
    book.compare(kernel(1, { live: [["127.1.0.1 9000", 1]] }));
    expect(book.sums.counterErrors).toBe(9);
    book.compare(kernel(1, { live: [["127.9.9.9 9000", 1]] }));
    expect(book.sums.counterErrors).toBe(11);
  });
});
