/** Notes in shared objects, since thousands of services often have the same note. */
import type { Note } from "../../mesh/model.ts";

/** Shared: never changed once made. */
export type Notes = Note[];

export const NO_NOTES: Notes = [];

const known = new Map<string, Note>();

/** The one object for a note. */
export function note(kind: Note["kind"], text: string): Note {
  const key = `${kind} ${text}`;
  let found = known.get(key);
  if (found === undefined) {
    // Texts with host names change over time. After a clear, common notes are soon shared again.
    if (known.size > 10_000) known.clear();
    found = { kind, text };
    known.set(key, found);
  }
  return found;
}

/** Sorts notes and removes duplicates. Gives the shared empty list when there are none. */
export function sortedNotes(notes: Note[]): Notes {
  if (notes.length === 0) return NO_NOTES;
  if (notes.length === 1) return notes;
  const byKey = new Map<string, Note>();
  for (const one of notes) byKey.set(`${one.kind} ${one.text}`, one);
  return [...byKey.entries()].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)).map(([, one]) => one);
}
