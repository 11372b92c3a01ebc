import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { archive } from "./archive.ts";
import { redactJson, redactText, redactYaml } from "./redact.ts";

const JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";
const KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----";

const texts: [text: string, secret: string][] = [
  [`the token ${JWT} was refused`, JWT],
  [`before\n${KEY}\nafter`, "MIGHAgEAMBMGByqGSM49"],
  ["-----BEGIN EC PRIVATE KEY-----\ncut off here", "cut off here"],
  ["Authorization: Bearer abcdef123456", "abcdef123456"],
  ["curl https://user:hunter2@proxy:3128/", "hunter2"],
  ["DB_PASSWORD=hunter2 started", "hunter2"],
  ['{"api_key": "hunter2"}', "hunter2"],
  ["client-secret: 'hunter two'", "hunter two"],
  ["--token=hunter2", "hunter2"],
];
for (const [text, secret] of texts)
  test(`text: ${text.slice(0, 40).replace(/\n/g, " ")}`, () => {
    expect(redactText(text)).not.toContain(secret);
    expect(redactText(text)).toContain("[left out]");
  });

test("what is no secret stays", () => {
  for (const text of [
    "the token in /var/lib/kmesh/istio-token can't be used, for it expired",
    "token: /var/lib/kmesh/istio-token",
    "10.96.0.10:80 goes to shop.demo",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
  ])
    expect(redactText(text)).toBe(text);
});

test("YAML: headers and arguments of probes, keys with secret names, comments", () => {
  const text = redactYaml(
    [
      "istiod: a:1 # hunter0",
      "token: /var/lib/kmesh/token",
      "metadata: {DB_PASSWORD: hunter1, ZONE: east}",
      "readiness-probe:",
      "  exec: {command: [/bin/check, --key, hunter2]}",
      "  httpGet: {port: 80, httpHeaders: [{name: X-Any, value: hunter3}]}",
    ].join("\n"),
  );
  expect(text).not.toContain("hunter");
  for (const kept of ["a:1", "/var/lib/kmesh/token", "east", "/bin/check", "X-Any"])
    expect(text).toContain(kept);
});

test("of text that is no YAML only the keys are kept", () => {
  const text = redactYaml("istiod: hunter1\n\tlabels: {a: hunter2\nreadiness-probe: [hunter3]\nhunter4\n");
  expect(redactYaml("hunter1 and hunter2")).toBe("# no settings, [left out]\n");
  expect(text).toMatch(/^# not valid YAML: .*\nistiod: \[left out\]\nreadiness-probe: \[left out\]\n$/);
});

test("JSON: by structure, and as text when it is none", () => {
  const value = {
    requestHeadersToAdd: [{ header: { key: "authorization", value: "hunter1" } }],
    env: { SESSION_TOKEN: "hunter2", n: 1 },
    text: `said ${JWT}`,
  };
  const text = redactJson(JSON.stringify(value));
  expect(text).not.toMatch(/hunter|eyJ/);
  expect(JSON.parse(text).env.n).toBe(1);
  expect(redactJson("{ password=hunter2")).not.toContain("hunter2");
});

test("tar reads the archive", () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-archive-"));
  try {
    const facts = [
      { name: "a.txt", text: "one\n" },
      { name: "deep/b.json", text: "x".repeat(1_000) },
      { name: "empty.txt", text: "" },
    ];
    const path = join(folder, "a.tar.gz");
    writeFileSync(path, archive("report", facts, 1_700_000_000));
    const { status, stderr } = spawnSync("tar", ["-xzf", path, "-C", folder], { encoding: "utf8" });
    expect([status, stderr]).toEqual([0, ""]);
    for (const { name, text } of facts) expect(readFileSync(join(folder, "report", name), "utf8")).toBe(text);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
