/** The frames of HTTP/2 (RFC 9113 sections 4 and 6) that CONNECT needs. */

export const FRAME = {
  data: 0,
  headers: 1,
  priority: 2,
  rstStream: 3,
  settings: 4,
  pushPromise: 5,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;

export const FLAG = { ack: 1, endStream: 1, endHeaders: 4, padded: 8, priority: 32 } as const;

export const SETTING = {
  headerTableSize: 1,
  enablePush: 2,
  maxConcurrentStreams: 3,
  initialWindowSize: 4,
  maxFrameSize: 5,
  maxHeaderListSize: 6,
} as const;

export const ERROR = {
  none: 0,
  protocol: 1,
  internal: 2,
  flowControl: 3,
  streamClosed: 5,
  frameSize: 6,
  refusedStream: 7,
  cancel: 8,
  compression: 9,
  connect: 10,
  enhanceYourCalm: 11,
} as const;

export const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");
/** SETTINGS_MAX_FRAME_SIZE that we accept: the default. */
export const MAX_FRAME = 16_384;
/** Limits of a header block: bytes and frames. */
const MAX_BLOCK = 32 * 1024;
const MAX_CONTINUATIONS = 8;
/** Bytes of a frame's header. */
export const HEADER = 9;

/** The whole connection fails with this code of RFC 9113 section 7. */
export class ConnectionFault extends Error {
  readonly code: number;
  constructor(code: number, reason: string) {
    super(reason);
    this.name = "ConnectionFault";
    this.code = code;
  }
}

/** One frame with its header. */
export function encodeFrame(type: number, flags: number, stream: number, payload: Uint8Array): Buffer {
  return Buffer.concat([encodeHeader(type, flags, stream, payload.length), payload]);
}

/** The header of a frame whose payload has `length` bytes. */
export function encodeHeader(type: number, flags: number, stream: number, length: number): Buffer {
  const header = Buffer.allocUnsafe(HEADER);
  header.writeUIntBE(length, 0, 3);
  header[3] = type;
  header[4] = flags;
  header.writeUInt32BE(stream, 5);
  return header;
}

/** A frame whose payload is one 32-bit number: WINDOW_UPDATE, RST_STREAM. */
export function encodeNumber(type: number, stream: number, value: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(value);
  return encodeFrame(type, 0, stream, payload);
}

export function encodeSettings(settings: [id: number, value: number][]): Buffer {
  const payload = Buffer.alloc(6 * settings.length);
  for (const [i, [id, value]] of settings.entries()) {
    payload.writeUInt16BE(id, 6 * i);
    payload.writeUInt32BE(value, 6 * i + 2);
  }
  return encodeFrame(FRAME.settings, 0, 0, payload);
}

/** A DATA frame that is being passed on: bytes of data and of padding to come. */
interface DataFrame {
  stream: number;
  left: number;
  padding: number;
  endStream: boolean;
}

export interface FrameSink {
  /** A whole frame other than DATA, HEADERS and CONTINUATION. */
  frame(type: number, flags: number, stream: number, payload: Buffer): void;
  /** A whole header block, its HEADERS and CONTINUATION frames put together. */
  headers(stream: number, block: Buffer, endStream: boolean): void;
  /**
   * Parts of DATA frames that came together, put together: views of the chunk that was pushed, which is changed for it.
   * `window` is what they take from the windows (padding counts). The last part of a frame with END_STREAM has `endStream`.
   */
  data(stream: number, bytes: Buffer, window: number, endStream: boolean): void;
}

/** Payload of DATA frames of one stream that follow one another: `from` to `to` of what is parsed. */
interface Run {
  stream: number;
  from: number;
  to: number;
  window: number;
}

const NOTHING = Buffer.alloc(0);

/**
 * Splits a byte stream into frames. DATA is passed on as it comes, what came at once in one piece; other frames are buffered,
 * at most MAX_FRAME bytes, or MAX_BLOCK for headers. Throws ConnectionFault, and errors of the sink.
 */
export class FrameReader {
  readonly #sink: FrameSink;
  #kept: Buffer = NOTHING;
  #preface: boolean;
  #data: DataFrame | undefined;
  /** What is parsed now, and the DATA in it that the sink has not got yet. */
  #whole: Buffer = NOTHING;
  #run: Run | undefined;
  #block: { stream: number; parts: Buffer[]; size: number; endStream: boolean } | undefined;
  #first = true;

  /** With `preface` the client's connection preface comes first. */
  constructor(sink: FrameSink, preface: boolean) {
    this.#sink = sink;
    this.#preface = preface;
  }

  /** Parses a chunk, which belongs to the reader and its sink from now on. */
  push(chunk: Buffer): void {
    let bytes = this.#kept.length === 0 ? chunk : Buffer.concat([this.#kept, chunk]);
    this.#whole = bytes;
    for (;;) {
      const taken = this.#take(bytes);
      if (taken === 0) break;
      bytes = bytes.subarray(taken);
    }
    this.#endRun();
    // A copy: a view would keep the whole chunk as long as the connection is silent.
    this.#kept = bytes.length === 0 ? NOTHING : Buffer.from(bytes);
    this.#whole = NOTHING;
  }

  /** Parses the beginning of `bytes`. Returns the number of parsed bytes; 0 when more are needed. */
  #take(bytes: Buffer): number {
    if (this.#preface) return this.#takePreface(bytes);
    if (this.#data) return bytes.length === 0 ? 0 : this.#takeData(this.#data, bytes);
    if (bytes.length < HEADER) return 0;
    const length = bytes.readUIntBE(0, 3);
    const type = bytes[3] ?? 0;
    const flags = bytes[4] ?? 0;
    const stream = bytes.readUInt32BE(5) & 0x7fffffff;
    if (length > MAX_FRAME) throw new ConnectionFault(ERROR.frameSize, `a frame of ${length} bytes`);
    if (this.#first && type !== FRAME.settings)
      throw new ConnectionFault(ERROR.protocol, "the first frame is not SETTINGS");
    if (this.#block && (type !== FRAME.continuation || stream !== this.#block.stream))
      throw new ConnectionFault(ERROR.protocol, "a header block is interrupted");
    if (type === FRAME.data) {
      const padded = (flags & FLAG.padded) !== 0;
      if (bytes.length < HEADER + (padded ? 1 : 0)) return 0;
      return this.#beginData(bytes, length, flags, stream, padded);
    }
    if (bytes.length < HEADER + length) return 0;
    this.#first = false;
    this.#endRun();
    const payload = bytes.subarray(HEADER, HEADER + length);
    if (type === FRAME.headers) this.#beginBlock(payload, flags, stream);
    else if (type === FRAME.continuation) this.#continueBlock(payload, flags);
    else this.#sink.frame(type, flags, stream, payload);
    return HEADER + length;
  }

  #takePreface(bytes: Buffer): number {
    const length = Math.min(bytes.length, PREFACE.length);
    if (!bytes.subarray(0, length).equals(PREFACE.subarray(0, length)))
      throw new ConnectionFault(ERROR.protocol, "the client does not speak HTTP/2");
    if (length < PREFACE.length) return 0;
    this.#preface = false;
    return length;
  }

  #beginData(bytes: Buffer, length: number, flags: number, stream: number, padded: boolean): number {
    if (stream === 0) throw new ConnectionFault(ERROR.protocol, "DATA without a stream");
    const padding = padded ? (bytes[HEADER] ?? 0) : 0;
    const head = padded ? 1 : 0;
    if (head + padding > length) throw new ConnectionFault(ERROR.protocol, "more padding than payload");
    const endStream = (flags & FLAG.endStream) !== 0;
    const data = { stream, left: length - head - padding, padding, endStream };
    if (data.left + padding === 0) {
      this.#endRun();
      this.#sink.data(stream, NOTHING, head, endStream);
    } else {
      if (head > 0) this.#addToRun(stream, bytes.subarray(HEADER + head, HEADER + head), head);
      this.#data = data;
    }
    return HEADER + head;
  }

  #takeData(data: DataFrame, bytes: Buffer): number {
    const some = Math.min(data.left, bytes.length);
    const padding = Math.min(data.padding, bytes.length - some);
    data.left -= some;
    data.padding -= padding;
    const whole = data.left + data.padding === 0;
    if (whole) this.#data = undefined;
    this.#addToRun(data.stream, bytes.subarray(0, some), some + padding);
    if (whole && data.endStream) this.#endRun(true);
    return some + padding;
  }

  /** Moves the bytes to the end of the stream's run: only headers and padding of its frames lie between. */
  #addToRun(stream: number, bytes: Buffer, window: number): void {
    if (this.#run?.stream !== stream) this.#endRun();
    const at = bytes.byteOffset - this.#whole.byteOffset;
    this.#run ??= { stream, from: at, to: at, window: 0 };
    const run = this.#run;
    if (at > run.to) this.#whole.copyWithin(run.to, at, at + bytes.length);
    run.to += bytes.length;
    run.window += window;
  }

  #endRun(endStream = false): void {
    const run = this.#run;
    if (!run) return;
    this.#run = undefined;
    this.#sink.data(run.stream, this.#whole.subarray(run.from, run.to), run.window, endStream);
  }

  #beginBlock(payload: Buffer, flags: number, stream: number): void {
    if (stream === 0) throw new ConnectionFault(ERROR.protocol, "HEADERS without a stream");
    const padding = flags & FLAG.padded ? (payload[0] ?? 0) : 0;
    const from = (flags & FLAG.padded ? 1 : 0) + (flags & FLAG.priority ? 5 : 0);
    if (from + padding > payload.length) throw new ConnectionFault(ERROR.protocol, "HEADERS is cut off");
    this.#block = { stream, parts: [], size: 0, endStream: (flags & FLAG.endStream) !== 0 };
    this.#continueBlock(payload.subarray(from, payload.length - padding), flags);
  }

  #continueBlock(part: Buffer, flags: number): void {
    const block = this.#block;
    if (!block) throw new ConnectionFault(ERROR.protocol, "CONTINUATION without HEADERS");
    block.parts.push(part);
    block.size += part.length;
    if (block.size > MAX_BLOCK || block.parts.length > 1 + MAX_CONTINUATIONS)
      throw new ConnectionFault(ERROR.enhanceYourCalm, "a header block is too long");
    if ((flags & FLAG.endHeaders) === 0) return;
    this.#block = undefined;
    this.#sink.headers(block.stream, Buffer.concat(block.parts), block.endStream);
  }
}
