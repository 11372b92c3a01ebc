/**
 * Texts of which many end alike: those of one deployment's workloads differ up to the first ";" alone. A text is held as that
 * part and the number of the rest.
 */
import { Texts } from "./texts.ts";

const SEMICOLON = 59;

/** Grows only, as Texts. Numbers are 0 to `size - 1`. */
export class PartedTexts {
  /** `FIRST;NUMBER OF THE REST`, or a text without ";". */
  readonly #texts = new Texts();
  readonly #rests = new Texts();
  /** The draft has its first ";". */
  #isParted = false;

  get size(): number {
    return this.#texts.size;
  }

  /** The number of a text. */
  intern(text: string): number {
    this.#isParted = false;
    const end = text.indexOf(";");
    if (end < 0) return this.#texts.intern(text);
    return this.#texts.intern(text.slice(0, end + 1) + this.#rests.intern(text.slice(end + 1)));
  }

  /** Appends bytes to the text that `finish` takes. They may have any part of it, and several ";". */
  append(bytes: Uint8Array, start: number, end: number): void {
    let next = start;
    if (!this.#isParted) {
      const found = bytes.indexOf(SEMICOLON, start);
      const cut = found < 0 || found >= end ? end : found;
      this.#texts.append(bytes, start, cut);
      if (cut === end) return;
      this.#isParted = true;
      next = cut + 1;
    }
    this.#rests.append(bytes, next, end);
  }

  /** Appends one ASCII character, given by its code. */
  appendCode(code: number): void {
    if (!this.#isParted && code === SEMICOLON) this.#isParted = true;
    else (this.#isParted ? this.#rests : this.#texts).appendCode(code);
  }

  /** The number of the text that was appended since the last call. */
  finish(): number {
    if (this.#isParted) {
      this.#texts.appendCode(SEMICOLON);
      for (const digit of String(this.#rests.finish())) this.#texts.appendCode(digit.charCodeAt(0));
      this.#isParted = false;
    }
    return this.#texts.finish();
  }

  /** The text of a number that `intern` or `finish` gave. */
  at(number: number): string {
    const text = this.#texts.at(number);
    const end = text.lastIndexOf(";");
    return end < 0 ? text : text.slice(0, end + 1) + this.#rests.at(Number(text.slice(end + 1)));
  }
}
