import { expect, test } from "bun:test";
import { formatDifferences } from "./config.ts";

const ABOUT = { path: "/etc/kmesh/config.yaml", running: {}, snapshot: {} };

test("differences are a column a place, with what takes the file over", () => {
  const text = formatDifferences(
    [
      { setting: "network", files: "net1", file: "net2", agent: "net1", snapshot: null },
      { setting: "labels", file: { app: "x" }, agent: {} },
      { setting: "exclude", file: ["10.0.0.0/8", "::1/128"], agent: [] },
    ],
    { live: ["exclude"], later: ["network", "labels"] },
    ABOUT,
  );
  expect(text.split("\n")).toEqual([
    "setting  files  file                agent   snapshot",
    "network  net1   net2                net1    (not set)",
    'labels   -      {"app":"x"}         (none)  -',
    "exclude  -      10.0.0.0/8,::1/128  (none)  -",
    "systemctl restart kmesh applies the file (connections continue): network, labels",
  ]);
});

test("what could not be compared is said", () => {
  const nothing = { live: [], later: [] };
  expect(formatDifferences([], nothing, ABOUT)).toBe(
    "/etc/kmesh/config.yaml, the agent, the snapshot: no difference.",
  );
  expect(formatDifferences([], nothing, { ...ABOUT, running: undefined, snapshot: undefined })).toBe(
    "No agent runs.\nThere is no snapshot.\nThere is nothing to compare.",
  );
  expect(formatDifferences([], { live: ["shadow"], later: [] }, ABOUT)).toEndWith(
    "systemctl reload kmesh takes the file over: shadow",
  );
});
