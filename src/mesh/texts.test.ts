import { expect, test } from "bun:test";
import { Texts } from "./texts.ts";

test("equal texts have one number, and each number gives its text back", () => {
  const texts = new Texts();
  const all = Array.from({ length: 5_000 }, (_, i) => `${"ü€𝄞x"[i % 4]}-${i}`);
  const numbers = ["", ...all].map((text) => texts.intern(text));
  expect(new Set(numbers).size).toBe(texts.size);
  for (const [i, text] of ["", ...all].entries()) {
    expect(texts.intern(text)).toBe(numbers[i] ?? -1);
  }
  expect(texts.at(numbers[0] ?? -1)).toBe("");
  expect(texts.at(numbers[1234] ?? -1)).toBe(new TextDecoder().decode(new TextEncoder().encode(all[1233])));
  expect(texts.size).toBe(5_001);
});

test("a text in parts is the same as the whole", () => {
  const texts = new Texts();
  const whole = texts.intern("one;two");
  const bytes = new TextEncoder().encode("..one..two..");
  texts.append(bytes, 2, 5);
  texts.appendCode(";".charCodeAt(0));
  texts.append(bytes, 7, 10);
  expect(texts.finish()).toBe(whole);
  expect(texts.size).toBe(1);
});

test("a text that was not finished leaves nothing", () => {
  const texts = new Texts();
  texts.append(new Uint8Array([65, 66]), 0, 2);
  expect(texts.at(texts.intern("C"))).toBe("C");
  expect(texts.finish()).toBe(texts.intern(""));
});
