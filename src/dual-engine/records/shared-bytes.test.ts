import { expect, test } from "bun:test";
import { isText } from "../../istiod/stream/bytes.ts";
import { latin1, SharedBytes } from "./shared-bytes.ts";

test("equal bytes have one value, others another, also when they want the same place", () => {
  const shared = new SharedBytes<{ text: string }>(4);
  const bytes = new Uint8Array(300).map((_, i) => i);
  let made = 0;
  const get = (start: number, end: number) =>
    shared.get(bytes, start, end) ?? shared.put(bytes, start, end, { text: `${start}-${end} ${made++}` });
  expect(get(0, 9)).toBe(get(0, 9));
  expect(made).toBe(1);
  for (let round = 0; round < 3; round++)
    for (let i = 0; i < 40; i++) expect(get(i, i + 9).text).toStartWith(`${i}-${i + 9} `);
  expect(get(7, 7).text).toStartWith("7-7 ");
  const before = made;
  expect(get(0, 300).text).toStartWith("0-300 ");
  expect(get(0, 300).text).toStartWith("0-300 ");
  expect(made).toBe(before + 2);
});

test("bytes are compared one by one with characters", () => {
  const bytes = new Uint8Array([1, 97, 255, 98]);
  expect(latin1(bytes, 1, 3)).toBe("aÿ");
  expect(isText("aÿ", bytes, 1, 3)).toBe(true);
  expect(isText("a", bytes, 1, 3)).toBe(false);
  expect(isText("ab", bytes, 1, 3)).toBe(false);
});
