import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { Authority } from "../../../test/lab/authority.ts";
import { readConfig } from "../../config/config.ts";
import { readMembers } from "../config-file/membership-files.ts";
import { joinSteps } from "./join-plan.ts";

const CLUSTER_ENV = `ISTIO_METAJSON_LABELS='{"app":"vms"}'
ISTIO_META_AUTO_REGISTER_GROUP='vms'
ISTIO_META_CLUSTER_ID='Kubernetes'
ISTIO_META_NETWORK='net1'
ISTIO_NAMESPACE='shop'
SERVICE_ACCOUNT='vm'
`;
const MESH_YAML = `defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  readinessProbe:
    httpGet: {path: /ready, port: 8080}
`;
const DECIDED = {
  istiod: { host: "istiod.istio-system.svc", port: 15012 },
  hosts: { "istiod.istio-system.svc": ["172.30.0.1"] },
  namespace: "shop",
  serviceAccount: "vm",
  workloadGroup: "vms",
  network: "net1",
  labels: { app: "vms" },
  readinessProbe: { httpGet: { path: "/ready", port: 8080 } },
};

let authority: Authority;
let folder: string;
let from: string;
/** The root of all written files. */
let root: string;
beforeAll(() => {
  authority = new Authority(mkdtempSync(join(tmpdir(), "kmesh-joining-ca-")));
});
afterAll(() => rmSync(authority.folder, { recursive: true }));
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-joining-"));
  from = join(folder, "files");
  root = join(folder, "root");
  mkdirSync(from);
  bring("cluster.env", CLUSTER_ENV);
  bring("mesh.yaml", MESH_YAML);
  bring("root-cert.pem", authority.root);
  bring("istio-token", token());
  bring("hosts", "172.30.0.1 istiod.istio-system.svc\n");
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const bring = (name: string, text: string) => writeFileSync(join(from, name), text, { mode: 0o600 });

function token(seconds = 3600): string {
  const claims = {
    aud: ["istio-ca"],
    sub: "system:serviceaccount:shop:vm",
    exp: Math.floor(Date.now() / 1000) + seconds,
  };
  return `x.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.x`;
}

const plan = () =>
  joinSteps({ from, configFile: "/etc/kmesh/config.yaml", stateDir: "/var/lib/kmesh", root });
async function perform(): Promise<string[]> {
  const { steps } = plan();
  for (const { act } of steps) await act?.();
  return steps.map(({ action, target }) => `${action} ${target.replace(root, "")}`);
}
const below = (path: string) => join(root, path);
const text = (path: string) => readFileSync(below(path), "utf8");
const CONFIG = "etc/kmesh/config.yaml";

/** The configuration as the agent would read it. */
function config() {
  const ca = below("var/lib/kmesh/root-cert.pem");
  return readConfig({ flags: { ca }, env: {}, file: { path: below(CONFIG), required: true } });
}

/** The output of the command. */
function refusal(run: () => unknown = plan): string {
  try {
    run();
  } catch (error) {
    if (error instanceof Error && "next" in error) return `${error.message}\n${error.next}`;
    throw error;
  }
  return "accepted";
}

describe("join", () => {
  test("keeps roots and token for root alone, writes the configuration, and then has nothing to do", async () => {
    expect(await perform()).toEqual([
      "write /var/lib/kmesh",
      "write /var/lib/kmesh/root-cert.pem",
      "write /var/lib/kmesh/istio-token",
      "write /etc/kmesh/config.yaml",
    ]);
    expect(statSync(below("var/lib/kmesh")).mode & 0o777).toBe(0o700);
    for (const name of ["root-cert.pem", "istio-token"])
      expect(statSync(below(`var/lib/kmesh/${name}`)).mode & 0o777).toBe(0o600);
    expect(readdirSync(below("var/lib/kmesh")).sort()).toEqual(["istio-token", "root-cert.pem"]);
    expect(text("var/lib/kmesh/istio-token").trim()).toBe(readFileSync(join(from, "istio-token"), "utf8"));
    expect(config()).toMatchObject({ ...DECIDED, token: "/var/lib/kmesh/istio-token", plaintext: false });
    // Every key is explained, whether or not it is set.
    for (const line of ["# istiod's address", "ca: /var/lib/kmesh/root-cert.pem", "#exclude: ["])
      expect(text(CONFIG)).toContain(line);
    expect((await perform()).map((each) => each.split(" ")[0])).toEqual(["keep", "keep", "keep"]);
  });

  test("planning writes nothing", () => {
    plan();
    expect(existsSync(root)).toBe(false);
  });

  test("what the files don't decide stays, with its comments and mode; the rest becomes what they say", async () => {
    mkdirSync(dirname(below(CONFIG)), { recursive: true });
    const own = [
      "# ours",
      "plaintext: true # not any more",
      "istiod: old:15010",
      "cgroup: [/system.slice/shop.service] # the shop",
      "labels: {app: old, tier: a}",
      "service-ip: 203.0.113.7",
      "workload-entry: shop-1",
      "exclude:",
      "  - 192.0.2.0/24",
      "",
    ].join("\n");
    writeFileSync(below(CONFIG), own, { mode: 0o644 });
    expect(await perform()).toContain("replace /etc/kmesh/config.yaml");
    expect(config()).toMatchObject({
      ...DECIDED,
      plaintext: false,
      cgroups: ["/system.slice/shop.service"],
      serviceIp: "203.0.113.7",
      workloadEntry: undefined,
    });
    expect(config().excludes).toHaveLength(1);
    const written = text(CONFIG);
    expect(written).toStartWith("# ours\n");
    expect(written).toContain("# the shop\n");
    expect(written).toContain("# the WorkloadGroup by which istiod registers this machine");
    expect(statSync(below(CONFIG)).mode & 0o777).toBe(0o644);
    await perform();
    expect(text(CONFIG)).toBe(written);
  });

  test("newer files replace the older; the step says what changes", async () => {
    await perform();
    writeFileSync(
      below(CONFIG),
      `bpffs: /sys/fs/bpf/other\n${text(CONFIG).replace("#exclude: [", "exclude: [")}`,
    );
    bring("cluster.env", CLUSTER_ENV.replace("net1", "net2").replace(/ISTIO_META_AUTO.*\n/, ""));
    bring("mesh.yaml", MESH_YAML.replace(/ {2}readinessProbe[\s\S]*/, ""));
    bring("istio-token", token(7200));
    const { steps } = plan();
    expect(steps.map(({ action }) => action)).toEqual(["keep", "replace", "replace"]);
    expect(steps.at(-1)?.note).toBe("network, workload-group, readiness-probe");
    await perform();
    expect(config()).toMatchObject({ network: "net2", workloadGroup: undefined, readinessProbe: undefined });
    expect(config().excludes).toHaveLength(2);
    expect(config().bpffs).toBe("/sys/fs/bpf/other");
    // The result is the same as a first write with these files: each key in its place, below its explanation.
    for (const line of ["#workload-group: shop", "#readiness-probe: ", "network: net2"])
      expect(text(CONFIG)).toContain(`\n${line}`);
  });

  test("hosts may be empty: then the name is looked up", async () => {
    bring("hosts", "");
    await perform();
    expect(config().hosts).toEqual({});
  });

  test("a token that others can read is named, with the command that mends it", () => {
    expect(plan().remarks).toEqual([]);
    const path = join(from, "istio-token");
    chmodSync(path, 0o744);
    expect(plan().remarks).toEqual([
      `others can read ${path}, and be spiffe://cluster.local/ns/shop/sa/vm with it: chmod 0600 ${path}`,
    ]);
  });

  test("all that is wrong is told with its file, and nothing is written", () => {
    bring("cluster.env", CLUSTER_ENV.replace("'shop'", "'Shop!'").replace("SERVICE_ACCOUNT='vm'\n", ""));
    bring("mesh.yaml", "defaultConfig: {}");
    rmSync(join(from, "root-cert.pem"));
    rmSync(join(from, "hosts"));
    mkdirSync(join(from, "hosts"));
    expect(refusal()).toBe(
      [
        `the files in ${from} can't be used, nothing was changed:`,
        `  ${from}/hosts can't be read (it is a folder, not a regular file)`,
        `  ${from}/root-cert.pem is missing: copy it from where istioctl wrote it`,
        `  ${from}/mesh.yaml: defaultConfig.discoveryAddress is missing`,
        `  ${from}/cluster.env: ISTIO_NAMESPACE is not a Kubernetes name: "Shop!"`,
        `  ${from}/cluster.env: SERVICE_ACCOUNT is missing`,
        "Mend them, or have istioctl x workload entry configure write them anew.",
      ].join("\n"),
    );
    expect(existsSync(root)).toBe(false);
  });

  test("a dead token is named with the command, unless a valid certificate makes up for it", async () => {
    await perform();
    bring("istio-token", token(-60));
    const command = `kubectl create token vm --namespace shop --audience istio-ca > ${from}/istio-token`;
    expect(refusal()).toMatch(
      new RegExp(`istio-token can't be used, for it expired at \\S+Z: ${command} writes`),
    );
    const { key, chain } = authority.issue("URI:spiffe://cluster.local/ns/shop/sa/vm");
    const current = below("var/lib/kmesh/identity/cert-1");
    mkdirSync(current, { recursive: true });
    writeFileSync(join(current, "key.pem"), key);
    writeFileSync(join(current, "cert-chain.pem"), chain);
    writeFileSync(join(current, "root-cert.pem"), authority.root);
    symlinkSync("cert-1", below("var/lib/kmesh/identity/current"));
    const { steps } = plan();
    expect(steps.map(({ action }) => action)).toEqual(["keep", "keep", "keep"]);
    expect(steps[1]?.note).toMatch(
      /istio-token is missing or has expired, and a certificate until \S+Z makes up/,
    );
  });

  test("a configuration that is wrong in other places is not touched", () => {
    mkdirSync(dirname(below(CONFIG)), { recursive: true });
    writeFileSync(below(CONFIG), "exclude: [nowhere]\nnamspace: x\n");
    expect(refusal()).toContain("the configuration would be wrong, nothing was changed:");
    expect(refusal()).toContain('there is no setting "namspace". Did you mean "namespace"?');
    expect(refusal()).toContain('key exclude: "nowhere" is not an address block');
    writeFileSync(below(CONFIG), "a: [\n");
    expect(refusal()).toContain(`${below(CONFIG)} is not valid YAML: Flow sequence`);
    writeFileSync(below(CONFIG), "- a\n");
    expect(refusal()).toContain("holds no settings");
  });

  test("no folder, and a folder without any of them", () => {
    expect(refusal(() => readMembers(join(folder, "none"), undefined))).toContain("there is no folder");
    mkdirSync(join(folder, "empty"));
    expect(refusal(() => readMembers(join(folder, "empty"), undefined))).toBe(
      `there are none of istioctl's files in ${folder}/empty\nHave them written by istioctl x workload entry configure -o DIR, and give --from DIR.`,
    );
  });

  test("the files at Istio's own places; hosts was appended to /etc/hosts there", () => {
    const places = {
      "cluster.env": "var/lib/istio/envoy/cluster.env",
      "mesh.yaml": "etc/istio/config/mesh",
      "root-cert.pem": "etc/certs/root-cert.pem",
      "istio-token": "var/run/secrets/tokens/istio-token",
    };
    for (const [name, place] of Object.entries(places)) {
      mkdirSync(dirname(below(place)), { recursive: true });
      writeFileSync(below(place), readFileSync(join(from, name)), { mode: 0o600 });
    }
    const { membership, paths, remarks } = readMembers("istio", undefined, root);
    expect(membership).toMatchObject({ clusterId: "Kubernetes", hosts: new Map() });
    expect(paths["mesh.yaml"]).toBe(below("etc/istio/config/mesh"));
    expect(remarks).toEqual([]);
    // A reboot empties /var/run.
    rmSync(below("var/run"), { recursive: true });
    expect(refusal(() => readMembers("istio", undefined, root))).toContain(
      `${below(places["istio-token"])} is missing: kubectl create token vm --namespace shop --audience istio-ca > ${below(places["istio-token"])} writes a fresh one`,
    );
    expect(refusal(() => readMembers("istio", undefined, folder))).toContain("Istio's own places");
  });
});
