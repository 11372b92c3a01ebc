import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { examineConfig, readConfig, readFolders, requireReadable } from "./config.ts";
import { ConfigError } from "./config-error.ts";
import { formatExclude } from "./exclude.ts";
import { SETTINGS, variableOf } from "./settings.ts";
import { type Flags, sourcesOf } from "./sources.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-config-"));
afterAll(() => rmSync(folder, { recursive: true }));

let files = 0;
function withFile(yaml: string, flags: Flags = {}, env: Record<string, string> = {}) {
  const path = join(folder, `${files++}.yaml`);
  writeFileSync(path, yaml);
  return sourcesOf({ config: path, ...flags }, env);
}

/** The error's message and next step in one line. */
function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof ConfigError) return `${error.message}. ${error.next}`;
    throw error;
  }
  return "accepted";
}

const base = { istiod: "10.0.0.1:15010", plaintext: true };

describe("precedence", () => {
  test("flag before environment before file before default", () => {
    const yaml = "istiod: file:1\nplaintext: true\nnamespace: from-file\n";
    expect(
      readConfig(withFile(yaml, { namespace: "from-flag" }, { KMESH_NAMESPACE: "from-env" })).namespace,
    ).toBe("from-flag");
    expect(readConfig(withFile(yaml, {}, { KMESH_NAMESPACE: "from-env" })).namespace).toBe("from-env");
    expect(readConfig(withFile(yaml)).namespace).toBe("from-file");
    expect(readConfig(withFile("", base)).namespace).toBe("default");
  });

  test("a switch can be taken back by what is nearer", () => {
    const yaml = "istiod: a:1\nplaintext: true\nshadow: true\n";
    expect(readConfig(withFile(yaml)).shadow).toBe(true);
    expect(readConfig(withFile(yaml, { shadow: false })).shadow).toBe(false);
    expect(readConfig(withFile(yaml, {}, { KMESH_SHADOW: "no" })).shadow).toBe(false);
  });

  test("every setting is a flag, a variable and a key", () => {
    for (const [name, setting] of Object.entries(SETTINGS)) {
      expect(variableOf(name)).toMatch(/^KMESH_[A-Z_]+$/);
      expect(setting.about.length).toBeGreaterThan(10);
      const wrong = refusal(() => readConfig(withFile(`${name}: {a: 1}\n`, name === "istiod" ? {} : base)));
      expect(wrong).not.toContain("there is no setting");
    }
  });
});

describe("values", () => {
  test("lists are repeated, or hold commas", () => {
    const config = readConfig(
      withFile("exclude: [10.0.0.0/8, 192.0.2.7]\n", base, { KMESH_IP: "10.0.0.5, FD00::5" }),
    );
    expect(config.excludes.map(formatExclude)).toEqual(["10.0.0.0/8", "192.0.2.7/32"]);
    expect(config.ips).toEqual(["10.0.0.5", "fd00::5"]);
    expect(config.cgroups).toEqual(["/"]);
  });

  test("who is governed: everything, unless cgroups or units are named", () => {
    const governed = (text: string, flags = {}) => {
      const { cgroups, units } = readConfig(withFile(text, { ...base, ...flags }));
      return { cgroups, units };
    };
    expect(governed("")).toEqual({ cgroups: ["/"], units: [] });
    expect(governed("unit: [nginx, shop.slice, nginx.service]")).toEqual({
      cgroups: [],
      units: ["nginx.service", "shop.slice"],
    });
    expect(governed("unit: nginx", { cgroup: ["/a.slice"] })).toEqual({
      cgroups: ["/a.slice"],
      units: ["nginx.service"],
    });
    // Removing the last unit must not enrol the whole machine.
    expect(governed("unit: []")).toEqual({ cgroups: [], units: [] });
  });

  test("the certificate's life in seconds", () => {
    const life = (text: string) => readConfig(withFile(text, base)).certificateLife;
    expect(["", "certificate-life: 90m", "certificate-life: 300s"].map(life)).toEqual([86_400, 5_400, 300]);
  });

  test("istiod's port follows from --plaintext", () => {
    const ask = (istiod: string) => readConfig(withFile("", { ...base, istiod })).istiod;
    expect(ask("istiod.istio-system.svc")).toEqual({ host: "istiod.istio-system.svc", port: 15010 });
    expect(ask("[fd00::1]:7")).toEqual({ host: "fd00::1", port: 7 });
    expect(ask("fd00::1")).toEqual({ host: "fd00::1", port: 15010 });
    const ca = join(folder, "ca.pem");
    writeFileSync(ca, "");
    expect(readConfig(withFile("", { istiod: "a", ca })).istiod).toEqual({ host: "a", port: 15012 });
  });

  test("who the machine is", () => {
    const { namespace, serviceAccount, trustDomain } = readConfig(
      withFile("trust-domain: mesh.example\n", { ...base, namespace: "shop" }),
    );
    expect({ namespace, serviceAccount, trustDomain }).toEqual({
      namespace: "shop",
      serviceAccount: "default",
      trustDomain: "mesh.example",
    });
    expect(readConfig(withFile("", base)).trustDomain).toBe("cluster.local");
    const aliases = "trust-domain-aliases: [old.example, cluster.local, an.example, old.example]\n";
    expect(readConfig(withFile(aliases, base)).trustDomainAliases).toEqual(["an.example", "old.example"]);
  });

  test("maps are YAML in the file, JSON or KEY=VALUE elsewhere", () => {
    const labels = { app: "shop", version: "1.10" };
    expect(readConfig(withFile("labels: {app: shop, version: '1.10'}", base)).labels).toEqual(labels);
    expect(readConfig(withFile("labels: [app=shop, version=1.10]", base)).labels).toEqual(labels);
    const flag = { ...base, labels: ["app=shop", "version=1.10"] };
    expect(readConfig(withFile("", flag)).labels).toEqual(labels);
    expect(readConfig(withFile("", base, { KMESH_LABELS: JSON.stringify(labels) })).labels).toEqual(labels);
    expect(readConfig(withFile("metadata: {A: true, B: 1, C: {d: true}}", base)).metadata).toEqual({
      A: "true",
      B: "1",
      C: { d: true },
    });
  });

  test("texts are as written, whatever YAML would make of them", () => {
    const texts = ["5e9", "0x10", "010", "1.10", "1e3", "12e4567", "0o17", "1_000", ".5", "+1", "0b1"];
    texts.push("yes", "no", "on", "true", "False", "2020-01-01", "12:30:45", ".inf", ".NaN", "1.0");
    for (const text of texts) {
      const key = `t${text}`;
      const yaml = [
        `network: ${text}`,
        `mesh-id: ${text}`,
        `cluster-id: ${text}`,
        `cgroup: [/${text}]`,
        `labels: {${text}: ${text}}`,
        `metadata: {${text}: ${text}, inner: {${text}: x}}`,
        `readiness-probe: {exec: {command: [test, ${text}]}}`,
        `ports: [{name: ${text}, containerPort: 8080}]`,
      ].join("\n");
      for (const head of ["", "%YAML 1.1\n---\n"]) {
        const config = readConfig(withFile(head + yaml, base));
        expect([key, config.network, config.meshId, config.clusterId]).toEqual([key, text, text, text]);
        expect(config.cgroups).toEqual([`/${text}`]);
        expect(config.labels).toEqual({ [text]: text });
        expect(config.metadata).toEqual({ [text]: text, inner: { [text]: "x" } });
        expect(config.readinessProbe).toEqual({ exec: { command: ["test", text] } });
        expect(config.ports).toEqual([{ name: text, containerPort: 8080 }]);
      }
    }
    expect(
      readConfig(withFile("name: 5e9\nservice-account: 0x10\nunit: [010]\nhosts: {1.10: 10.0.0.1}", base)),
    ).toMatchObject({
      name: "5e9",
      serviceAccount: "0x10",
      units: ["010.service"],
      hosts: { "1.10": ["10.0.0.1"] },
    });
    // Settings with numbers keep them as numbers, also in JSON.
    const probe =
      '{"httpGet": {"port": 8080, "httpHeaders": [{"name": "v", "value": 1.10}]}, "timeoutSeconds": 2}';
    expect(readConfig(withFile(`readiness-probe: ${probe}`, base)).readinessProbe).toEqual(
      readConfig(withFile("", base, { KMESH_READINESS_PROBE: probe })).readinessProbe,
    );
    expect(readConfig(withFile("", base, { KMESH_READINESS_PROBE: probe })).readinessProbe).toEqual({
      httpGet: { port: 8080, httpHeaders: [{ name: "v", value: "1.10" }] },
      timeoutSeconds: 2,
    });
    expect(readConfig(withFile("", base, { KMESH_LABELS: '{"v": 1.10, "n": 1}' })).labels).toEqual({
      v: "1.10",
      n: "1",
    });
  });

  test("a value that is empty, ~ or null says nothing", () => {
    for (const empty of ["", "~", "null"]) {
      const config = readConfig(withFile(`network: ${empty}\nunit: ${empty}\nlabels: ${empty}`, base));
      expect([config.network, config.cgroups, config.labels]).toEqual(["", ["/"], {}]);
    }
    expect(readConfig(withFile("network: 'null'", base)).network).toBe("null");
  });

  test("the folders are read without the rest", () => {
    expect(readFolders(withFile("istiod: [broken]\nrun-dir: /run/other\n"))).toEqual({
      bpffs: "/sys/fs/bpf/kmesh",
      stateDir: "/var/lib/kmesh",
      runDir: "/run/other",
    });
  });
});

describe("what is wrong is named, with its place and the next step", () => {
  const cases: [string, () => unknown, RegExp][] = [
    [
      "no istiod",
      () => readConfig(withFile("plaintext: true")),
      /istiod's address is missing.*--istiod HOST:PORT/,
    ],
    [
      "no ca",
      () => readConfig(withFile("", { istiod: "a:1" })),
      /root certificate is missing.*--ca FILE.*--plaintext/,
    ],
    ["unknown key", () => readConfig(withFile("istoid: a:1")), /no setting "istoid".*mean "istiod"/],
    [
      "a key far from all",
      () => readConfig(withFile("qqqqqq: 1", base)),
      /no setting "qqqqqq".*The settings are istiod/,
    ],
    [
      "flag",
      () => readConfig(withFile("", { ...base, exclude: ["10.0.0.0/8", "x"] })),
      /^--exclude: "x" is not an address block.*10\.0\.0\.0\/8/,
    ],
    [
      "variable",
      () => readConfig(withFile("", base, { KMESH_NETNS: "some" })),
      /^KMESH_NETNS: "some" is none of own, all. Write own or all\./,
    ],
    [
      "key",
      () => readConfig(withFile("locality: a/b/c/d", base)),
      /yaml, key locality: .*REGION\/ZONE\/SUBZONE/,
    ],
    ["list for one", () => readConfig(withFile("namespace: [a, b]", base)), /key namespace: one value/],
    ["a map for a list", () => readConfig(withFile("unit: {a: b}", base)), /key unit: a list of texts is/],
    [
      "a near word",
      () => readConfig(withFile("mode: dual-engin", base)),
      /"dual-engin" is none of kernel-native, dual-engine. Did you mean "dual-engine"/,
    ],
    ["switch", () => readConfig(withFile("shadow: maybe", base)), /"maybe" is neither true nor false/],
    [
      "file missing",
      () => readConfig(withFile("", { ...base, ca: "/does/not/exist" })),
      /--ca: \/does\/not\/exist does not exist/,
    ],
    [
      "token missing",
      () => requireReadable("--token", "/does/not/exist"),
      /--token: .*exist does not exist.*Check the path/,
    ],
    [
      "trust domain",
      () => readConfig(withFile("trust-domain: a/b", base)),
      /key trust-domain: "a\/b" is not a trust domain/,
    ],
    [
      "certificate's life",
      () => readConfig(withFile("certificate-life: 1d", base)),
      /key certificate-life: "1d" is not a length of time/,
    ],
    [
      "short life",
      () => readConfig(withFile("certificate-life: 90s", base)),
      /certificate-life: 90s is too short for a certificate: 2m is the least/,
    ],
    [
      "config missing",
      () => readConfig(sourcesOf({ ...base, config: "/does/not/exist" }, {})),
      /exist does not exist.*kmesh install writes one; --config/,
    ],
    ["not YAML", () => readConfig(withFile("a: [", base)), /not valid YAML/],
    ["no map", () => readConfig(withFile("- a", base)), /holds no settings/],
    [
      "mode",
      () => readConfig(withFile("", { ...base, mode: "triple-engine" })),
      /--mode: "triple-engine" is none of kernel-native, dual-engine. Write kernel-native or/,
    ],
    [
      "name",
      () => readConfig(withFile("", { ...base, namespace: "Prod" })),
      /--namespace: "Prod" is not a Kubernetes name/,
    ],
    ["istiod", () => readConfig(withFile("", { ...base, istiod: "a:0" })), /--istiod: "0" is not a port/],
    [
      "map",
      () => readConfig(withFile("", { ...base, labels: ["app"] })),
      /--labels: "app" is not KEY=VALUE. Write KEY=VALUE, or in the file/,
    ],
    [
      "label",
      () => readConfig(withFile("labels: {version: [1]}", base)),
      /key labels: version is not a text. Write version: "..." with quotes/,
    ],
    [
      "a port for istiod",
      () => readConfig(withFile("istiod: 15012", { plaintext: true })),
      /key istiod: "15012" is a port without a host. Write HOST:PORT/,
    ],
    [
      "no address",
      () => readConfig(withFile("istiod: 300.1.1.1:15012", { plaintext: true })),
      /key istiod: "300.1.1.1" is neither a host name nor an address/,
    ],
    [
      "a URL for the CA",
      () => readConfig(withFile("ca-server: https://ca.example", base)),
      /key ca-server: "https:\/\/ca.example" is not HOST:PORT/,
    ],
    [
      "a device for the roots",
      () => readConfig(withFile("", { istiod: "a", ca: "/dev/zero" })),
      /--ca: \/dev\/zero can't be read \(.*it is a device, not a regular file\)/,
    ],
    [
      "a device for the file",
      () => readConfig(sourcesOf({ ...base, config: "/dev/zero" }, {})),
      /\/dev\/zero can't be read \(.*it is a device/,
    ],
    [
      "address",
      () => readConfig(withFile("", { ...base, hosts: ["istiod=nowhere"] })),
      /--hosts: "nowhere" is neither an IP address nor a full DNS name/,
    ],
    ["JSON", () => readConfig(withFile("", base, { KMESH_PORTS: "[" })), /^KMESH_PORTS: it is not JSON/],
    ["ports", () => readConfig(withFile("ports: 80", base)), /key ports: it is not a list.*containerPort/],
    [
      "probe",
      () => readConfig(withFile("readiness-probe: {httpget: {port: 1}}", base)),
      /key readiness-probe: it can't be used: httpget is not a field of it \(those are httpGet, tcpSocket/,
    ],
    [
      "metadata",
      () => readConfig(withFile("", { ...base, metadata: ["INTERCEPTION_MODE=NONE"] })),
      /--metadata: INTERCEPTION_MODE has a setting of its own, or is decided by kmesh/,
    ],
    [
      "group and entry",
      () => readConfig(withFile("", { ...base, "workload-group": "a", "workload-entry": "b" })),
      /workload-group \(a\) and workload-entry \(b\) are both set.*exists already/,
    ],
    [
      "unit",
      () => readConfig(withFile("", { ...base, unit: ["shop.timer"] })),
      /--unit: "shop.timer" has no processes.*nginx\.service/,
    ],
    [
      "cgroup",
      () => readConfig(withFile("", { ...base, cgroup: ["nginx"] })),
      /--cgroup: "nginx" does not start with \//,
    ],
  ];
  for (const [name, run, expected] of cases) {
    test(name, () => expect(refusal(run)).toMatch(expected));
  }

  test("all of it at once, each once", () => {
    const { problems } = examineConfig(
      withFile("istiod: a:0\nnamspace: x\nlabels: {a: [1], b: null}\nexclude: [10.0.0.0/8, y]\n"),
    );
    expect(problems.map(({ message }) => message.replace(/^.*yaml[:,] /, ""))).toEqual([
      'there is no setting "namspace"',
      'key istiod: "0" is not a port',
      "istiod's root certificate is missing",
      "key labels: a is not a text",
      "key labels: b is not a text",
      'key exclude: "y" is not an address block',
    ]);
  });

  test("a default file that is not there is no error", () => {
    expect(
      readFolders({ flags: {}, env: {}, file: { path: "/does/not/exist", required: false } }).runDir,
    ).toBe("/run/kmesh");
  });
});
