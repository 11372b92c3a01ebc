import { Duplex } from "node:stream";
import { ERROR } from "./frames.ts";
import type { Headers } from "./hpack.ts";

/** The stream's window, bytes: the initial size, and the largest while its reader keeps pace. */
export const FIRST_STREAM_WINDOW = 64 * 1024;
const LARGEST_STREAM_WINDOW = 4 * 1024 * 1024;
/** The buffer of node:stream for what is written. What comes in waits in our own queue, which is counted. */
const HIGH_WATER_MARK = 64 * 1024;
/** Bytes of the blocks in which small pieces wait. */
const BLOCK = 4 * 1024;

/** The stream was reset, by the peer or by us; `code` is of RFC 9113 section 7. */
export class StreamReset extends Error {
  readonly code: number;
  constructor(code: number, reason: string) {
    super(reason);
    this.name = "StreamReset";
    this.code = code;
  }
}

/** The interface of the connection for a stream. */
export interface StreamOwner {
  /** The stream has data to send. */
  ready(stream: ConnectStream): void;
  respond(stream: ConnectStream, headers: Headers, end: boolean): void;
  /** `bytes` more are in the queue. The stream may be reset by this call. */
  held(stream: ConnectStream, bytes: number): void;
  /** `bytes` of the queue were read or dropped. `credit` is what the stream's window grows by, 0 for nothing. */
  consumed(stream: ConnectStream, bytes: number, credit: number): void;
  /** Whether windows may grow. */
  ample(): boolean;
  /** The stream ended; with a `code` the peer gets RST_STREAM. */
  closed(stream: ConnectStream, code: number | undefined): void;
}

/**
 * One CONNECT tunnel: a Duplex of the bytes in both directions, half-closed by END_STREAM, reset by RST_STREAM. Writing
 * waits for the peer's windows, and for its turn among the streams of the connection. What comes in is kept in a queue
 * that the stream's window bounds.
 */
export class ConnectStream extends Duplex {
  readonly id: number;
  /** Settles with the final response's headers (client only); rejects with StreamReset or the connection's error. */
  readonly response: Promise<Headers>;
  /** Bytes that the peer allows us to send. */
  sendWindow: number;
  /** Bytes that we allow the peer to send. */
  receiveWindow = FIRST_STREAM_WINDOW;
  /** The peer has sent END_STREAM; we have. */
  remoteEnded = false;
  localEnded = false;
  /** We have sent the response (server). */
  answered = false;
  readonly #owner: StreamOwner;
  /** What settles the response; absent when that is done. */
  #answer: { resolve(headers: Headers): void; reject(error: Error): void } | undefined;
  #window = FIRST_STREAM_WINDOW;
  #queue: Buffer[] = [];
  /** The block whose beginning is the last of the queue, and the bytes in it. */
  #block: Buffer | undefined;
  #blockUsed = 0;
  #queued = 0;
  #wanted = false;
  #uncredited = 0;
  #outgoing: { bytes: Buffer; done: (error?: Error) => void } | undefined;
  #final: (() => void) | undefined;
  #eof = false;
  #resetByPeer = false;
  /** The reset by a peer that reads no more: see `unread`. */
  #unread: StreamReset | undefined;
  #code: number = ERROR.cancel;

  constructor(owner: StreamOwner, id: number, sendWindow: number) {
    super({ allowHalfOpen: true, readableHighWaterMark: 1, writableHighWaterMark: HIGH_WATER_MARK });
    this.#owner = owner;
    this.id = id;
    this.sendWindow = sendWindow;
    const { promise, resolve, reject } = Promise.withResolvers<Headers>();
    this.response = promise;
    this.#answer = { resolve, reject };
    promise.catch(() => {});
  }

  /** Sends the response (server only). */
  respond(status: number, end = false): void {
    this.#owner.respond(this, [[":status", String(status)]], end);
  }

  /** The response has come (client only). */
  answer(headers: Headers): void {
    this.#answer?.resolve(headers);
    this.#answer = undefined;
  }

  /** Ends both directions at once: RST_STREAM with `code`. */
  reset(code: number): void {
    this.#code = code;
    this.destroy();
  }

  /** Adds bytes of a DATA frame. False: they exceed the stream's window. */
  receive(bytes: Buffer, window: number, end: boolean): boolean {
    this.receiveWindow -= window;
    if (this.receiveWindow < 0) return false;
    // Padding is not kept.
    this.#uncredited += window - bytes.length;
    if (bytes.length > 0) {
      this.#keep(bytes);
      this.#queued += bytes.length;
    }
    if (end) this.remoteEnded = true;
    if (bytes.length > 0) this.#owner.held(this, bytes.length);
    if (!this.destroyed) this.#deliver();
    return true;
  }

  /** Adds to the queue. What waits is copied where it would keep a much larger chunk, of which it is a view. */
  #keep(bytes: Buffer): void {
    const block = this.#block;
    const isRead = this.#wanted && this.readableFlowing === true && this.#queue.length === 0;
    if (isRead || bytes.length * 4 >= bytes.buffer.byteLength) {
      this.#queue.push(bytes);
      this.#block = undefined;
    } else if (block && this.#queue.length > 0 && this.#blockUsed + bytes.length <= block.length) {
      block.set(bytes, this.#blockUsed);
      this.#blockUsed += bytes.length;
      this.#queue[this.#queue.length - 1] = block.subarray(0, this.#blockUsed);
    } else {
      const next = Buffer.allocUnsafeSlow(Math.max(BLOCK, bytes.length));
      next.set(bytes);
      this.#block = next;
      this.#blockUsed = bytes.length;
      this.#queue.push(next.subarray(0, bytes.length));
    }
  }

  /** Bytes that wait for the reader. */
  get held(): number {
    return this.#queued;
  }

  /** Drops what waits for a reader that does not read, and resets the stream. */
  shed(): void {
    this.#code = ERROR.enhanceYourCalm;
    this.destroy(new StreamReset(ERROR.enhanceYourCalm, "the reader reads too slowly, and memory is short"));
  }

  /** The peer has reset the stream, or the connection has failed. */
  abort(error: Error): void {
    this.#resetByPeer = true;
    this.#noAnswer(error);
    this.destroy(error);
  }

  /**
   * The peer has sent all, and takes no more: it has reset the stream after END_STREAM. What it has sent stays to be read. After
   * that the stream ends with `reset`; with NO_ERROR (RFC 9113 section 8.1) only a write fails, as one to a TCP peer that has
   * closed.
   */
  unread(reset: StreamReset): void {
    this.#unread = reset;
    this.#resetByPeer = true;
    this.localEnded = true;
    const outgoing = this.#outgoing;
    const final = this.#final;
    this.#outgoing = undefined;
    this.#final = undefined;
    this.#owner.closed(this, undefined);
    if (reset.code !== ERROR.none) this.#afterEnd(() => this.destroy(reset));
    else if (outgoing) this.#afterEnd(() => outgoing.done(reset));
    final?.();
  }

  /** Whether data can be sent now. */
  get sendable(): boolean {
    if (this.#outgoing) return this.sendWindow > 0;
    return this.#final !== undefined;
  }

  /**
   * Takes at most `limit` bytes off what waits to be sent. `end` says that nothing follows. Undefined when there is
   * nothing. `sent` must be called once the frame is written.
   */
  next(limit: number): { bytes: Buffer; end: boolean; sent: () => void } | undefined {
    const outgoing = this.#outgoing;
    if (!outgoing) {
      const final = this.#final;
      if (!final) return undefined;
      this.#final = undefined;
      this.localEnded = true;
      return { bytes: Buffer.alloc(0), end: true, sent: final };
    }
    const length = Math.min(limit, this.sendWindow, outgoing.bytes.length);
    const bytes = outgoing.bytes.subarray(0, length);
    this.sendWindow -= length;
    if (length < outgoing.bytes.length) {
      outgoing.bytes = outgoing.bytes.subarray(length);
      return { bytes, end: false, sent: () => {} };
    }
    this.#outgoing = undefined;
    return { bytes, end: false, sent: outgoing.done };
  }

  override _read(): void {
    this.#wanted = true;
    this.#deliver();
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error) => void): void {
    if (chunk.length === 0) {
      done();
      return;
    }
    const unread = this.#unread;
    if (unread) {
      this.#afterEnd(() => done(unread));
      return;
    }
    this.#outgoing = { bytes: chunk, done };
    this.#owner.ready(this);
  }

  /** Calls it once all that has come is read, and those who read have been told of the end. */
  #afterEnd(act: () => void): void {
    if (this.readableEnded) setImmediate(act);
    else this.once("end", () => setImmediate(act));
  }

  override _final(done: () => void): void {
    if (this.localEnded) {
      done();
      return;
    }
    this.#final = done;
    this.#owner.ready(this);
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    const dropped = this.#queued;
    this.#queue = [];
    this.#block = undefined;
    this.#queued = 0;
    this.#outgoing = undefined;
    this.#final = undefined;
    if (dropped > 0) this.#owner.consumed(this, dropped, 0);
    this.#noAnswer(error ?? new StreamReset(ERROR.cancel, "the stream was closed"));
    const whole = this.localEnded && this.remoteEnded;
    this.#owner.closed(this, whole || this.#resetByPeer ? undefined : this.#code);
    done(error);
  }

  #noAnswer(error: Error): void {
    this.#answer?.reject(error);
    this.#answer = undefined;
  }

  #deliver(): void {
    let bytes = 0;
    while (this.#wanted) {
      const chunk = this.#queue.shift();
      if (!chunk) break;
      bytes += chunk.length;
      // Before push: its reader may destroy the stream.
      this.#queued -= chunk.length;
      this.#wanted = this.push(chunk);
    }
    if (this.#queue.length === 0) this.#block = undefined;
    if (bytes > 0) {
      this.#uncredited += bytes;
      this.#owner.consumed(this, bytes, this.#credit());
    }
    if (this.remoteEnded && this.#queue.length === 0 && !this.#eof) {
      this.#eof = true;
      this.push(null);
    }
  }

  /** What the peer gets as new credit, once half of the window was read. A reader that keeps pace gets a larger window. */
  #credit(): number {
    if (this.remoteEnded || this.#uncredited < this.#window / 2) return 0;
    let credit = this.#uncredited;
    this.#uncredited = 0;
    if (this.#queued === 0 && this.#window < LARGEST_STREAM_WINDOW && this.#owner.ample()) {
      credit += this.#window;
      this.#window *= 2;
    }
    this.receiveWindow += credit;
    return credit;
  }
}
