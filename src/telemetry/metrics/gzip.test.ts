import { expect, test } from "bun:test";
import { gunzipSync } from "node:zlib";
import { acceptsGzip, gzipped } from "./gzip.ts";

test("parts become one stream, also when their memory is used again", () => {
  const memory = new Uint8Array(100_000);
  const whole: Uint8Array[] = [];
  function* parts() {
    for (let round = 0; round < 4; round++) {
      const part = memory.subarray(0, 30_000 + round);
      part.fill(65 + round);
      whole.push(part.slice());
      yield part;
      yield new Uint8Array();
    }
  }
  const stream = Buffer.concat([...gzipped(parts())]);
  expect(gunzipSync(stream).equals(Buffer.concat(whole))).toBe(true);
  expect(stream.length).toBeLessThan(2_000);
  expect(gunzipSync(Buffer.concat([...gzipped([])])).length).toBe(0);
});

test("gzip only for those who take it", () => {
  expect([undefined, "", "identity", "gzip;q=0", "br;q=1, deflate", "*;q=0"].map(acceptsGzip)).toEqual(
    Array(6).fill(false),
  );
  expect(["gzip", "deflate, GZIP;q=0.5", "*", "br, gzip , zstd"].map(acceptsGzip)).toEqual(
    Array(4).fill(true),
  );
});
