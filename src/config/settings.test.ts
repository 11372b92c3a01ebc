import { expect, test } from "bun:test";
import { unknownVariables } from "./settings.ts";

test("variables that mean nothing are found", () => {
  expect(
    unknownVariables({
      KMESH_ISTOID: "a",
      KMESH_ISTIOD: "b",
      KMESH_CONFIG: "c",
      KMESH_FAULT: "e",
      PATH: "d",
    }),
  ).toEqual(["KMESH_ISTOID"]);
});
