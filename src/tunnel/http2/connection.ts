/**
 * One HTTP/2 connection that carries only CONNECT tunnels (RFC 9113, section 8.5), as client or server. It replaces
 * node:http2, which under Bun lets streams starve each other and stalls at large windows.
 *
 * No stream can starve another. The connection's window is credited as soon as bytes arrive, whether or not they are read;
 * only a stream's own window limits its sender. Sending streams take turns of one frame each.
 */
import type { Duplex } from "node:stream";
import type { Budget } from "./budget.ts";
import {
  ConnectionFault,
  ERROR,
  encodeFrame,
  encodeHeader,
  encodeNumber,
  encodeSettings,
  FLAG,
  FRAME,
  FrameReader,
  type FrameSink,
  HEADER,
  MAX_FRAME,
  PREFACE,
  SETTING,
} from "./frames.ts";
import { encodeHeaders, type Headers, HpackDecoder, HpackError, MAX_HEADER_LIST } from "./hpack.ts";
import { type Asked, askEvery, askNoMore } from "./ping-clock.ts";
import { ConnectStream, FIRST_STREAM_WINDOW, type StreamOwner, StreamReset } from "./stream.ts";
import { TokenBucket } from "./token-bucket.ts";

/** Defaults before SETTINGS (RFC 9113 section 6.5.2). */
const DEFAULT_WINDOW = 65_535;
const MAX_WINDOW = 2 ** 31 - 1;
/** The connection's window, bytes: the initial and the largest size. */
const FIRST_WINDOW = 1024 * 1024;
const LARGEST_WINDOW = 16 * 1024 * 1024;
/** Most bytes of DATA in the socket's buffer. More would let a bulk stream delay its neighbours. */
const SEND_AHEAD = 64 * 1024;
/** Most waiting bytes of control frames, before the connection to a peer that does not read is closed. */
const DEAF = 1024 * 1024;
/** Interval and time limit of PINGs, milliseconds, as in ztunnel and istiod's Envoys. */
const PING_EVERY = 10_000;
const PING_PATIENCE = 20_000;
/** Milliseconds between the first and the final GOAWAY, for requests that are on their way. */
const GOAWAY_GRACE = 1_000;
/** WINDOW_UPDATEs that a peer may send at first, and for each DATA frame that it gets. More is a flood. */
const UPDATES = { first: 1_000, aFrame: 64 };
/** The same of RST_STREAMs, and of HEADERS of streams that have ended: for each stream. */
const STRAYS = { first: 1_000, aStream: 2 };
/** SETTINGS_MAX_CONCURRENT_STREAMS that a server offers, as istiod's waypoints do. */
export const MAX_STREAMS = 100;

export interface ConnectionOptions {
  role: "client" | "server";
  budget: Budget;
  /** Server: a CONNECT has come. Answer it with stream.respond. */
  request?(stream: ConnectStream, headers: Headers): void;
  /** The connection has ended; without a reason it was closed normally. */
  closed?(reason: Error | undefined): void;
  /** There may be room for another stream: one has ended, or the peer allows more. */
  room?(): void;
  /** Milliseconds; for tests. */
  pingEvery?: number;
}

/** All connections share their sockets' listeners: closures would cost each of them 1 KB. */
const CONNECTION = Symbol("connection");
type Joined = Duplex & { [CONNECTION]: Http2Connection };

export class Http2Connection implements StreamOwner, FrameSink, Asked {
  readonly #socket: Duplex;
  readonly #options: ConnectionOptions;
  readonly #reader: FrameReader;
  readonly #decoder = new HpackDecoder();
  readonly #streams = new Map<number, ConnectStream>();
  /** Streams with data to send, in the order of their turns. */
  #ready: ConnectStream[] = [];
  /** Requests that the peer takes back before they are answered: the limit of streams does not hold those back. */
  readonly #resets = new TokenBucket(1000, 33);
  readonly #chatter = new TokenBucket(1000, 100);
  readonly #pingEvery: number;
  #goaway: ReturnType<typeof setTimeout> | undefined;
  #lastPeerStream = 0;
  #nextStream = 1;
  /** WINDOW_UPDATEs that the peer may still send. */
  #updatesLeft = UPDATES.first;
  /** RST_STREAMs, and HEADERS of streams that have ended, that it may still send. */
  #straysLeft = STRAYS.first;
  #sendWindow = DEFAULT_WINDOW;
  #largestSendWindow = DEFAULT_WINDOW;
  #initialSendWindow = DEFAULT_WINDOW;
  #peerMaxFrame = MAX_FRAME;
  #peerMaxStreams = Number.POSITIVE_INFINITY;
  #window = FIRST_WINDOW;
  #receiveWindow = FIRST_WINDOW;
  #uncredited = 0;
  #receivedAtSize = 0;
  #settled = false;
  #draining = false;
  #ended = false;
  #heard = false;
  #pingSent = 0;

  /** The connection owns `socket`, which must be connected (TLS done). */
  constructor(socket: Duplex, options: ConnectionOptions) {
    this.#socket = socket;
    this.#options = options;
    const server = options.role === "server";
    this.#reader = new FrameReader(this, server);
    const settings: [number, number][] = [
      [SETTING.initialWindowSize, FIRST_STREAM_WINDOW],
      [SETTING.maxHeaderListSize, MAX_HEADER_LIST],
      server ? [SETTING.maxConcurrentStreams, MAX_STREAMS] : [SETTING.enablePush, 0],
    ];
    socket.write(
      Buffer.concat([
        server ? Buffer.alloc(0) : PREFACE,
        encodeSettings(settings),
        encodeNumber(FRAME.windowUpdate, 0, FIRST_WINDOW - DEFAULT_WINDOW),
      ]),
    );
    Object.assign(socket, { [CONNECTION]: this });
    socket.on("data", onData);
    socket.on("drain", onDrain);
    socket.on("end", onEnd);
    socket.on("error", onError);
    socket.on("close", onClose);
    // It may have been paused until now.
    socket.resume();
    this.#pingEvery = options.pingEvery ?? PING_EVERY;
    askEvery(this.#pingEvery, this);
  }

  /** Streams that are open. */
  get streams(): number {
    return this.#streams.size;
  }

  /** Whether another stream may be opened (client). */
  get usable(): boolean {
    return (
      !this.#ended &&
      !this.#draining &&
      this.#streams.size < this.#peerMaxStreams &&
      this.#nextStream < 2 ** 30
    );
  }

  /**
   * The number of concurrent streams that can't starve each other at the peer: as many whole stream windows as fit into the
   * connection's window.
   */
  get capacity(): number {
    const windows = Math.floor(this.#largestSendWindow / Math.max(1, this.#initialSendWindow));
    return Math.max(1, Math.min(windows, this.#peerMaxStreams));
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Sends a CONNECT (client); `headers` with `:method` and `:authority` first. See ConnectStream.response. */
  connect(headers: Headers): ConnectStream {
    const stream = new ConnectStream(this, this.#nextStream, this.#initialSendWindow);
    this.#nextStream += 2;
    this.#straysLeft += STRAYS.aStream;
    this.#streams.set(stream.id, stream);
    this.#sendHeaders(stream.id, headers, false);
    return stream;
  }

  /** Accepts no more streams, and closes after the last one. */
  drain(): void {
    if (this.#draining || this.#ended) return;
    this.#draining = true;
    if (this.#options.role === "client") {
      if (this.#streams.size === 0) this.#finish(undefined);
      return;
    }
    this.#sendGoaway(MAX_WINDOW, ERROR.none, "");
    this.#goaway = setTimeout(() => {
      this.#goaway = undefined;
      if (this.#ended) return;
      this.#sendGoaway(this.#lastPeerStream, ERROR.none, "");
      if (this.#streams.size === 0) this.#finish(undefined);
    }, GOAWAY_GRACE);
  }

  /** The socket has failed, or ends: an error only where that cuts streams. */
  lost(error: Error): void {
    this.#finish(this.#streams.size > 0 ? error : undefined);
  }

  /** Ends the connection and every stream on it now. */
  destroy(error?: Error): void {
    this.#finish(error ?? new Error("the connection was closed"));
  }

  ready(stream: ConnectStream): void {
    this.#giveTurn(stream);
    this.send();
  }

  respond(stream: ConnectStream, headers: Headers, end: boolean): void {
    if (this.#ended || stream.destroyed) return;
    stream.answered = true;
    if (end) stream.localEnded = true;
    this.#sendHeaders(stream.id, headers, end);
    if (!end) return;
    stream.reset(ERROR.none);
  }

  held(stream: ConnectStream, bytes: number): void {
    this.#options.budget.take(stream, bytes);
  }

  consumed(stream: ConnectStream, bytes: number, credit: number): void {
    if (credit > 0 && !this.#ended && !stream.destroyed)
      this.#write(encodeNumber(FRAME.windowUpdate, stream.id, credit));
    this.#options.budget.release(stream, bytes);
  }

  ample(): boolean {
    return this.#options.budget.ample;
  }

  closed(stream: ConnectStream, code: number | undefined): void {
    this.#ready = this.#ready.filter((each) => each !== stream);
    if (!this.#streams.delete(stream.id) || this.#ended) return;
    if (code !== undefined) this.#write(encodeNumber(FRAME.rstStream, stream.id, code));
    if (this.#draining && this.#streams.size === 0 && this.#goaway === undefined) this.#finish(undefined);
    if (!this.#ended) this.#options.room?.();
  }

  /** Bytes have come. */
  received(chunk: Buffer): void {
    if (this.#ended) return;
    this.#heard = true;
    try {
      this.#reader.push(chunk);
    } catch (error) {
      if (error instanceof ConnectionFault) this.#fail(error);
      else if (error instanceof HpackError) this.#fail(new ConnectionFault(ERROR.compression, error.message));
      else
        this.#fail(
          new ConnectionFault(ERROR.internal, error instanceof Error ? error.message : String(error)),
        );
    }
  }

  frame(type: number, flags: number, id: number, payload: Buffer): void {
    if (this.#ended) return;
    switch (type) {
      case FRAME.settings:
        this.#onSettings(flags, id, payload);
        return;
      case FRAME.windowUpdate:
        this.#onWindowUpdate(id, payload);
        return;
      case FRAME.rstStream:
        this.#onReset(id, payload);
        return;
      case FRAME.ping:
        this.#onPing(flags, payload);
        return;
      case FRAME.goaway:
        this.#onGoaway(payload);
        return;
      case FRAME.pushPromise:
        throw new ConnectionFault(ERROR.protocol, "PUSH_PROMISE");
      default:
        // PRIORITY is obsolete, and unknown types must be ignored. Limit their rate.
        this.#requireCalm();
    }
  }

  #onSettings(flags: number, id: number, payload: Buffer): void {
    this.#requireCalm();
    if (id !== 0) throw new ConnectionFault(ERROR.protocol, "SETTINGS on a stream");
    if (flags & FLAG.ack) {
      if (payload.length > 0) throw new ConnectionFault(ERROR.frameSize, "SETTINGS ACK with a payload");
      return;
    }
    if (payload.length % 6 !== 0) throw new ConnectionFault(ERROR.frameSize, "SETTINGS is cut off");
    this.#settled = true;
    for (let at = 0; at < payload.length; at += 6) {
      const value = payload.readUInt32BE(at + 2);
      switch (payload.readUInt16BE(at)) {
        case SETTING.initialWindowSize: {
          if (value > MAX_WINDOW)
            throw new ConnectionFault(ERROR.flowControl, "the initial window is too large");
          const more = value - this.#initialSendWindow;
          this.#initialSendWindow = value;
          for (const stream of this.#streams.values()) {
            stream.sendWindow += more;
            if (stream.sendWindow > MAX_WINDOW)
              throw new ConnectionFault(ERROR.flowControl, "a window is too large");
            if (stream.sendable) this.#giveTurn(stream);
          }
          break;
        }
        case SETTING.maxFrameSize:
          if (value < MAX_FRAME || value > 2 ** 24 - 1)
            throw new ConnectionFault(ERROR.protocol, "no such frame size");
          this.#peerMaxFrame = value;
          break;
        case SETTING.maxConcurrentStreams:
          this.#peerMaxStreams = value;
          break;
        case SETTING.enablePush:
          if (value > 1) throw new ConnectionFault(ERROR.protocol, "no such value of ENABLE_PUSH");
          break;
      }
    }
    this.#write(encodeFrame(FRAME.settings, FLAG.ack, 0, Buffer.alloc(0)));
    this.send();
    this.#options.room?.();
  }

  #onWindowUpdate(id: number, payload: Buffer): void {
    if (payload.length !== 4) throw new ConnectionFault(ERROR.frameSize, "WINDOW_UPDATE of a wrong size");
    if (--this.#updatesLeft < 0) throw new ConnectionFault(ERROR.enhanceYourCalm, "too many window updates");
    const more = payload.readUInt32BE() & MAX_WINDOW;
    if (id === 0) {
      if (more === 0) throw new ConnectionFault(ERROR.protocol, "WINDOW_UPDATE by 0");
      this.#sendWindow += more;
      if (this.#sendWindow > MAX_WINDOW)
        throw new ConnectionFault(ERROR.flowControl, "the window is too large");
      if (this.#sendWindow > this.#largestSendWindow) {
        this.#largestSendWindow = this.#sendWindow;
        this.#options.room?.();
      }
      this.send();
      return;
    }
    const stream = this.#known(id);
    // It was on its way when the stream ended.
    if (!stream) return;
    if (more === 0 || stream.sendWindow + more > MAX_WINDOW) {
      stream.reset(more === 0 ? ERROR.protocol : ERROR.flowControl);
      return;
    }
    stream.sendWindow += more;
    if (stream.sendable) this.ready(stream);
  }

  #onReset(id: number, payload: Buffer): void {
    if (payload.length !== 4) throw new ConnectionFault(ERROR.frameSize, "RST_STREAM of a wrong size");
    this.#requireEarned();
    const stream = this.#known(id);
    const takenBack = this.#options.role === "server" && stream && !stream.answered;
    if (takenBack && !this.#resets.take())
      throw new ConnectionFault(ERROR.enhanceYourCalm, "too many requests are taken back");
    const code = payload.readUInt32BE();
    const reset = new StreamReset(code, `the peer reset the stream (code ${code})`);
    const isLate = stream?.remoteEnded && !takenBack && (code === ERROR.none || code === ERROR.cancel);
    if (isLate) stream.unread(reset);
    else stream?.abort(reset);
  }

  #onPing(flags: number, payload: Buffer): void {
    if (payload.length !== 8) throw new ConnectionFault(ERROR.frameSize, "PING of a wrong size");
    if (flags & FLAG.ack) {
      this.#pingSent = 0;
      return;
    }
    this.#requireCalm();
    this.#write(encodeFrame(FRAME.ping, FLAG.ack, 0, payload));
  }

  #onGoaway(payload: Buffer): void {
    if (payload.length < 8) throw new ConnectionFault(ERROR.frameSize, "GOAWAY is cut off");
    const last = payload.readUInt32BE() & MAX_WINDOW;
    const code = payload.readUInt32BE(4);
    this.#draining = true;
    if (this.#options.role === "client")
      for (const stream of [...this.#streams.values()])
        if (stream.id > last)
          stream.abort(new StreamReset(ERROR.refusedStream, `the peer goes away (code ${code})`));
    if (this.#streams.size === 0)
      this.#finish(code === ERROR.none ? undefined : new ConnectionFault(code, "the peer goes away"));
  }

  headers(id: number, block: Buffer, end: boolean): void {
    if (this.#ended) return;
    const headers = this.#decoder.decode(block);
    const stream = this.#streams.get(id);
    if (this.#options.role === "client") {
      if (!stream) {
        this.#known(id);
        this.#requireEarned();
        return;
      }
      const status = Number(headers.find(([name]) => name === ":status")?.[1]);
      if (status >= 100 && status < 200) {
        this.#requireCalm();
        return;
      }
      stream.answer(headers);
      if (end) stream.receive(Buffer.alloc(0), 0, true);
      return;
    }
    if (stream) {
      // Trailers have no meaning in a tunnel.
      if (end && !stream.remoteEnded) stream.receive(Buffer.alloc(0), 0, true);
      else stream.reset(ERROR.protocol);
      return;
    }
    if (id % 2 === 0 || id <= this.#lastPeerStream) {
      this.#known(id);
      this.#requireCalm();
      return;
    }
    this.#lastPeerStream = id;
    this.#straysLeft += STRAYS.aStream;
    this.#accept(id, headers, end);
  }

  #accept(id: number, headers: Headers, end: boolean): void {
    const refused = this.#streams.size >= MAX_STREAMS || (this.#draining && this.#goaway === undefined);
    if (refused) {
      if (!this.#resets.take()) throw new ConnectionFault(ERROR.enhanceYourCalm, "too many streams");
      this.#write(encodeNumber(FRAME.rstStream, id, ERROR.refusedStream));
      return;
    }
    const stream = new ConnectStream(this, id, this.#initialSendWindow);
    stream.on("error", () => {});
    this.#streams.set(id, stream);
    if (end) stream.remoteEnded = true;
    this.#options.request?.(stream, headers);
  }

  data(id: number, bytes: Buffer, window: number, end: boolean): void {
    if (this.#ended) return;
    if (window === 0 && !end) this.#requireCalm();
    this.#receiveWindow -= window;
    if (this.#receiveWindow < 0)
      throw new ConnectionFault(ERROR.flowControl, "the connection's window is overrun");
    this.#uncredited += window;
    this.#receivedAtSize += window;
    const stream = this.#known(id);
    if (stream && !stream.remoteEnded) {
      if (!stream.receive(bytes, window, end)) stream.reset(ERROR.flowControl);
    } else if (stream) {
      stream.reset(ERROR.streamClosed);
    }
    this.#giveCredit();
  }

  /** The open stream; undefined when it has ended. Throws when there never was one of that number. */
  #known(id: number): ConnectStream | undefined {
    const stream = this.#streams.get(id);
    if (stream) return stream;
    const idle = this.#options.role === "client" ? id >= this.#nextStream : id > this.#lastPeerStream;
    if (id === 0 || id % 2 === 0 || idle)
      throw new ConnectionFault(ERROR.protocol, `there is no stream ${id}`);
    return undefined;
  }

  /** Credits the connection's window, and lets it grow while it is used. */
  #giveCredit(): void {
    if (this.#ended || this.#uncredited < this.#window / 2) return;
    let credit = this.#uncredited;
    this.#uncredited = 0;
    if (this.#receivedAtSize > 8 * this.#window && this.#window < LARGEST_WINDOW && this.ample()) {
      credit += this.#window;
      this.#window *= 2;
      this.#receivedAtSize = 0;
    }
    this.#receiveWindow += credit;
    this.#write(encodeNumber(FRAME.windowUpdate, 0, credit));
  }

  /** Sends one frame of each stream in turn, until the socket's buffer or a window is full. */
  send(): void {
    while (!this.#ended) {
      const room = SEND_AHEAD - this.#socket.writableLength;
      const frames = room > 0 ? this.#nextFrames(room) : [];
      if (frames.length === 0) return;
      // One write: each costs a TLS record and a system call of its own.
      this.#write(Buffer.concat(frames.flatMap(({ head, bytes }) => [head, bytes])));
      for (const { sent } of frames) sent();
    }
  }

  #giveTurn(stream: ConnectStream): void {
    if (!this.#ready.includes(stream)) this.#ready.push(stream);
  }

  /** DATA frames of the streams in turn, `room` bytes or a frame more. */
  #nextFrames(room: number): { head: Buffer; bytes: Buffer; sent: () => void }[] {
    const frames = [];
    for (let left = room; left > 0; ) {
      const stream = this.#ready.shift();
      if (!stream) break;
      if (!stream.sendable) continue;
      const chunk = stream.next(Math.min(this.#sendWindow, this.#peerMaxFrame, MAX_FRAME));
      if (!chunk) continue;
      const { bytes, end, sent } = chunk;
      if (bytes.length === 0 && !end) {
        // The connection's window is used up. WINDOW_UPDATE continues.
        this.#ready.unshift(stream);
        break;
      }
      this.#sendWindow -= bytes.length;
      this.#updatesLeft += UPDATES.aFrame;
      frames.push({
        head: encodeHeader(FRAME.data, end ? FLAG.endStream : 0, stream.id, bytes.length),
        bytes,
        sent,
      });
      left -= HEADER + bytes.length;
      if (stream.sendable) this.#giveTurn(stream);
    }
    return frames;
  }

  #sendHeaders(id: number, headers: Headers, end: boolean): void {
    const block = encodeHeaders(headers);
    for (let at = 0; at === 0 || at < block.length; at += MAX_FRAME) {
      const last = at + MAX_FRAME >= block.length;
      const flags = (last ? FLAG.endHeaders : 0) | (at === 0 && end ? FLAG.endStream : 0);
      const type = at === 0 ? FRAME.headers : FRAME.continuation;
      this.#write(encodeFrame(type, flags, id, block.subarray(at, at + MAX_FRAME)));
    }
  }

  #sendGoaway(last: number, code: number, reason: string): void {
    const payload = Buffer.alloc(8 + Buffer.byteLength(reason));
    payload.writeUInt32BE(last);
    payload.writeUInt32BE(code, 4);
    payload.write(reason, 8);
    this.#write(encodeFrame(FRAME.goaway, 0, 0, payload));
  }

  #write(frame: Buffer): void {
    if (this.#ended || !this.#socket.writable) return;
    this.#socket.write(frame);
    if (this.#socket.writableLength > DEAF) this.#finish(new Error("the peer reads nothing"));
  }

  #requireCalm(): void {
    if (!this.#chatter.take()) throw new ConnectionFault(ERROR.enhanceYourCalm, "too many frames of no use");
  }

  /** For frames that come with streams: they are no flood while there are not more than streams. */
  #requireEarned(): void {
    if (--this.#straysLeft < 0)
      throw new ConnectionFault(ERROR.enhanceYourCalm, "too many frames of streams that have ended");
  }

  ask(): void {
    const patience = this.#pingEvery * (PING_PATIENCE / PING_EVERY);
    if (!this.#settled) {
      this.#finish(new Error("the peer sent no SETTINGS"));
      return;
    }
    const now = performance.now();
    if (this.#pingSent !== 0 && now - this.#pingSent >= patience) {
      this.#finish(new Error("the peer answers no PING"));
      return;
    }
    if (this.#heard) this.#pingSent = 0;
    else if (this.#pingSent === 0) {
      this.#pingSent = now;
      this.#write(encodeFrame(FRAME.ping, 0, 0, Buffer.from("kmesh-hb", "latin1")));
    }
    this.#heard = false;
  }

  #fail(fault: ConnectionFault): void {
    if (this.#ended) return;
    this.#sendGoaway(this.#lastPeerStream, fault.code, fault.message);
    this.#finish(fault);
  }

  #finish(reason: Error | undefined): void {
    if (this.#ended) return;
    this.#ended = true;
    askNoMore(this.#pingEvery, this);
    clearTimeout(this.#goaway);
    this.#ready = [];
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    for (const stream of streams) stream.abort(reason ?? new Error("the connection was closed"));
    this.#socket.on("error", () => {});
    this.#socket.end();
    // A peer that does not close its side must not keep the socket.
    const socket = this.#socket;
    const timer = setTimeout(() => socket.destroy(), GOAWAY_GRACE);
    timer.unref();
    socket.on("close", () => clearTimeout(timer));
    socket.resume();
    this.#options.closed?.(reason);
  }
}

function onData(this: Joined, chunk: Buffer): void {
  this[CONNECTION].received(chunk);
}

function onDrain(this: Joined): void {
  this[CONNECTION].send();
}

function onEnd(this: Joined): void {
  this[CONNECTION].lost(new Error("the peer closed the connection"));
}

function onError(this: Joined, error: Error): void {
  this[CONNECTION].destroy(error);
}

function onClose(this: Joined): void {
  this[CONNECTION].lost(new Error("the connection was lost"));
}
