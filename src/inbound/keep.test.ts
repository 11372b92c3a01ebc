/** Maps in inbound/keep/ never change their layouts: every version of kmesh, and its tunnel, reads and writes them. */
import { expect, test } from "bun:test";
import { KEPT_INBOUND_MAPS } from "../policy/pinned.ts";
import * as layout from "./layout.gen.ts";

/**
 * Never alter or remove what stands here: the tunnel of an older version reads these maps while a newer agent writes them, and a
 * rollback goes back to it. What needs more room goes into another map beside these. Of the text's pieces, pinned.ts has the
 * header: its bytes 6 and 7 are free, and zero in them means what was so before.
 */
const MAPS = {
  inbound_listeners: { type: 15, keySize: 4, valueSize: 8, maxEntries: 2, flags: 0 },
  inbound_refusals: { type: "array", keySize: 4, valueSize: 8, maxEntries: 16384, flags: 1024 },
  inbound_recent: { type: "array", keySize: 4, valueSize: 72, maxEntries: 64, flags: 1024 },
  inbound_number: { type: "array", keySize: 4, valueSize: 8, maxEntries: 1, flags: 0 },
  inbound_text: {
    ...{ type: "array-of-maps", keySize: 4, valueSize: 4, maxEntries: 1, flags: 0 },
    inner: { type: "array", keySize: 4, valueSize: 4096, maxEntries: 1, flags: 4096 },
  },
};

test("the maps", () => {
  const { maps }: { maps: Record<string, object> } = layout;
  expect([...KEPT_INBOUND_MAPS].sort()).toEqual(
    Object.keys(MAPS).sort() as (typeof KEPT_INBOUND_MAPS)[number][],
  );
  for (const [name, shape] of Object.entries(MAPS))
    expect({ name, ...maps[name] }).toMatchObject({ name, ...shape });
});

test("a refusal's record, and who refused", () => {
  const { number, at_ns, source, destination, source_port, port, refusal } = layout.inbound_recent.fields;
  expect(layout.inbound_recent.size).toBe(72);
  expect(
    [number, at_ns, source, destination, source_port, port, refusal].map(({ offset }) => offset),
  ).toEqual([0, 8, 16, 32, 48, 50, 52]);
  expect(layout.enums.inbound_refusal).toEqual({
    ...{ REFUSED_NOT: 0, REFUSED_STRICT: 1, REFUSED_TOO_LARGE: 2, REFUSED_OTHER: 3, REFUSED_INTERNAL: 4 },
    REFUSED_POLICY: 16,
  });
  expect(layout.enums.inbound_listener).toEqual({ LISTENER_V4: 0, LISTENER_V6: 1, LISTENER_COUNT: 2 });
});
