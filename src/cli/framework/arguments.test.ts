import { expect, test } from "bun:test";
import { parseArguments, type Shape, UsageError } from "./arguments.ts";

const shape: Shape = {
  flags: {
    istiod: { kind: "text", hint: "HOST:PORT", about: "" },
    exclude: { kind: "list", hint: "CIDR[:PORT]", about: "" },
    shadow: { kind: "switch", about: "" },
  },
  positionals: [{ name: "what", about: "what to show", required: false, choices: ["model", "tables"] }],
};

test("values, repeated flags, switches, positionals", () => {
  const read = parseArguments(
    ["--istiod=a:1", "--exclude", "10.0.0.0/8", "tables", "--exclude=::1", "--shadow"],
    shape,
  );
  expect(read).toEqual({
    flags: { istiod: "a:1", exclude: ["10.0.0.0/8", "::1"], shadow: true },
    positionals: ["tables"],
  });
});

test("a switch is taken back, and one that was not given is not there", () => {
  expect(parseArguments(["--no-shadow"], shape).flags).toEqual({ shadow: false });
  expect(parseArguments(["--shadow=false"], shape).flags).toEqual({ shadow: false });
  expect(parseArguments([], shape)).toEqual({ flags: {}, positionals: [undefined] });
});

test("after -- everything is a positional", () => {
  expect(() => parseArguments(["--", "--shadow"], shape)).toThrow('"--shadow" is not a valid what');
});

const wrong: [string[], RegExp][] = [
  [["--istoid", "a:1"], /no flag --istoid.*mean --istiod/],
  [["--zzz"], /no flag --zzz.*--help/],
  [["-s"], /no flag -s/],
  [["-shadow"], /no flag -shadow.*mean --shadow/],
  [["--no-istiod"], /no flag --no-istiod/],
  [["--toString"], /no flag --toString/],
  [["--istiod"], /--istiod needs a value.*HOST:PORT/],
  [["--istiod", "--shadow"], /--istiod needs a value/],
  [["--istiod", "a:1", "--istiod", "b:1"], /--istiod is given twice/],
  [["--shadow=maybe"], /--shadow takes no value/],
  [["modle"], /"modle" is not a valid what.*mean "model"/],
  [["everything"], /"everything" is not a valid what.*model or tables/],
  [["model", "tables"], /"tables" is one argument too many/],
];
for (const [args, expected] of wrong) {
  test(`refused: ${args.join(" ")}`, () => {
    const refusal = (() => {
      try {
        return parseArguments(args, shape);
      } catch (error) {
        return error;
      }
    })();
    expect(refusal).toBeInstanceOf(UsageError);
    if (refusal instanceof UsageError) expect(`${refusal.message}. ${refusal.next}`).toMatch(expected);
  });
}

test("a positional that is needed is asked for", () => {
  const needs: Shape = { flags: {}, positionals: [{ name: "TARGET", about: "HOST:PORT", required: true }] };
  expect(() => parseArguments([], needs)).toThrow("TARGET is missing");
});
