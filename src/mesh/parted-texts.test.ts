import { expect, test } from "bun:test";
import { PartedTexts } from "./parted-texts.ts";

const bytesOf = (text: string) => new TextEncoder().encode(text);

/** Appends a text in the parts between semicolons. */
function append(texts: PartedTexts, text: string): number {
  for (const [i, part] of text.split(";").entries()) {
    if (i > 0) texts.appendCode(";".charCodeAt(0));
    const bytes = bytesOf(part);
    texts.append(bytes, 0, bytes.length);
  }
  return texts.finish();
}

test("each text has one number, however it is given, and each number gives its text back", () => {
  const texts = new PartedTexts();
  const all = [
    ...["", ";", ";;", "a", "a;", "a;b", "a;b;c", "b;b;c", "a;0", "0", "0;0", "a;;b", "ü;€;𝄞"],
    ...Array.from({ length: 3_000 }, (_, i) => `pod-${i};ns-${i % 7};app;;cluster`),
  ];
  const numbers = all.map((text) => texts.intern(text));
  expect(new Set(numbers).size).toBe(all.length);
  expect(texts.size).toBe(all.length);
  for (const [i, text] of all.entries()) {
    expect(texts.at(numbers[i] ?? -1)).toBe(text);
    expect(append(texts, text)).toBe(numbers[i] ?? -1);
    const bytes = bytesOf(`<${text}>`);
    texts.append(bytes, 1, bytes.length - 1);
    expect(texts.finish()).toBe(numbers[i] ?? -1);
  }
  expect(texts.size).toBe(all.length);
});

test("a text that was not finished leaves nothing", () => {
  const texts = new PartedTexts();
  texts.append(bytesOf("ab"), 0, 2);
  texts.appendCode(";".charCodeAt(0));
  texts.append(bytesOf("cd"), 0, 2);
  expect(texts.at(texts.intern("e;f"))).toBe("e;f");
  expect(append(texts, "e;f")).toBe(texts.intern("e;f"));
  expect(texts.size).toBe(1);
});
