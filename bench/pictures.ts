/**
 * Makes the README's pictures of the page, docs/topology*.png, from a real run: an agent with the embedded control plane, apps
 * in units of their own, callers, servers that demand mutual TLS, to which a tunnel carries, and a server that is gone after
 * two thirds of the time. The page is that of `kmesh topology --open`, in Debian's Chromium. Run as root:
 *
 *     bun bench/pictures.ts [--minutes 8] [--out docs]
 */
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Page } from "playwright-core";
import type { DemoService } from "../src/demo/services.ts";
import { readCertificate } from "../src/istiod/identity/certificate.ts";
import { identityStore } from "../src/machine/identity-store.ts";
import type { EdgesDocument } from "../src/telemetry/model.ts";
import { AgentLab } from "../test/e2e/agent-lab.ts";
import { TestMesh } from "../test/lab/mesh-member.ts";
import { TestCgroup } from "../test/lab/namespace.ts";
import { eventually, OwnedProcess, sleep } from "../test/lab/process.ts";
import { Browser, missingBrowser } from "../test/page/browser.ts";
import { flagsOf } from "./lab/flags.ts";
import { KMESH, requireTools, runAndClean } from "./lab/machine.ts";
import { progress } from "./lab/measure.ts";

const flags = flagsOf({
  minutes: { type: "string", default: "8" },
  out: { type: "string", default: join(import.meta.dirname, "../docs") },
});
requireTools(["unshare", "util-linux"], ["hostname", "hostname"]);
const why = missingBrowser();
if (why !== undefined) throw new Error(why);

const MACHINE = "10.0.0.5";
const SIZE = { width: 1280, height: 720 };
/** Bytes of one picture. */
const MOST = 150_000;

type Workload = [name: string, address: string, port: number];
const service = (
  name: string,
  namespace: string,
  address: string,
  port: number,
  ...workloads: Workload[]
): DemoService => ({
  host: `${name}.${namespace}.svc.cluster.local`,
  addresses: [address],
  port,
  balance: "round-robin",
  endpoints: workloads.map(([workload, at, its]) => ({ workload, address: at, port: its })),
});
const certificates = new TestMesh();
/** The account of the servers that demand mutual TLS. */
const STRICT = "ledger";
const strict = (...of: Parameters<typeof service>): DemoService => ({
  ...service(...of),
  mtls: "istio",
  sans: [certificates.id(STRICT)],
});
const MESH = {
  services: [
    service(
      "orders",
      "shop",
      "10.96.0.11",
      8080,
      ["orders-v1", "10.1.0.11", 8080],
      ["orders-v2", "10.1.0.12", 8080],
    ),
    service(
      "payments",
      "shop",
      "10.96.0.12",
      443,
      ["payments-v1", "10.1.1.21", 8443],
      ["payments-v2", "10.1.1.22", 8443],
    ),
    service("stock", "shop", "10.96.0.13", 9090, ["stock-v1", "10.1.2.31", 9090]),
    strict(
      "ledger",
      "finance",
      "10.96.0.14",
      5432,
      ["ledger-0", "10.2.0.41", 5432],
      ["ledger-1", "10.2.0.42", 5432],
    ),
    strict("rates", "finance", "10.96.0.15", 80, ["rates-v1", "10.2.0.51", 8080]),
    // Callers have their names from here.
    service(
      "frontend",
      "shop",
      "10.96.0.16",
      80,
      ["frontend-v1", "10.1.9.7", 8080],
      ["frontend-v2", "10.1.9.8", 8080],
    ),
  ],
};
const FAILING = "10.1.1.22:8443";
const serversOf = (demandTls: boolean) =>
  MESH.services
    .filter(({ mtls }) => (mtls !== undefined) === demandTls)
    .flatMap(({ endpoints }) => endpoints.map(({ address, port }) => `${address}:${port}`));
const SERVERS = serversOf(false);
const STRICT_SERVERS = serversOf(true);
/** Units and what they do; see pictures.py. */
const UNITS: Readonly<Record<string, string[]>> = {
  "billing.service": [
    "10.96.0.11:8080,9,700,9000,0.05",
    "10.96.0.12:443,4,1800,2600,0.2",
    "10.96.0.15:80,2,200,1200,0",
  ],
  "report-worker.service": ["10.96.0.14:5432,1.5,900,60000,1.5", "10.96.0.13:9090,3,2400,3000,0.1"],
  "backup.service": ["10.96.0.14:5432,0.2,400,250000,4"],
};
const CALLERS = [
  `${MACHINE}:8000,6,600,15000,0.1,10.1.9.7`,
  `${MACHINE}:8000,3,600,15000,0.1,10.1.9.8`,
  `${MACHINE}:8000,0.1,90,200,0,198.51.100.80`,
];

// The machine's name is on the pictures.
const named = ["unshare", "--uts", "sh", "-c", 'hostname vm-billing-1 && exec "$@"', "kmesh", KMESH];
const lab = await AgentLab.create(MESH, named);
// Units lie in slices.
const slice = TestCgroup.create("shop", ".slice");
const processes: OwnedProcess[] = [];
let browser: Browser | undefined;
await runAndClean(work, async () => {
  await browser?.close();
  for (const each of processes) await each.stop("SIGKILL");
  certificates.close();
  await lab.remove();
  await slice.remove();
});

async function work(): Promise<void> {
  const addresses = [
    ...SERVERS,
    ...STRICT_SERVERS,
    MACHINE,
    ...CALLERS.map((flow) => flow.split(",").at(-1) ?? ""),
  ];
  await lab.namespace.addLoopback(...new Set(addresses.map((each) => each.split(":")[0] ?? "")));
  const { key, cert, ca } = certificates.issue("billing");
  identityStore(join(lab.folder, "state")).save(readCertificate(key, cert, ca));
  await lab.liveAgent(
    "--tunnel=on",
    "--service-account=billing",
    `--cgroup=${slice.path}`,
    `--ip=${MACHINE}`,
    "--namespace=shop",
    "--workload-group=billing",
    '--ports=[{"name": "http", "containerPort": 8000}]',
  );
  await eventually("traffic is counted", async () => (await map()).history > 1);
  await app("servers", undefined, "serve", ...SERVERS.filter((each) => each !== FAILING));
  await app("strict servers", undefined, "serve-tls", strictFolder(), ...STRICT_SERVERS);
  await startTunnel();
  const failing = await app("one server", undefined, "serve", FAILING);
  await app("billing", slice.child("billing.service"), "serve", `${MACHINE}:8000`);
  for (const [unit, flows] of Object.entries(UNITS)) await app(unit, slice.child(unit), "call", ...flows);
  await app("callers", undefined, "call", ...CALLERS);
  const seconds = Number(flags.minutes) * 60;
  progress(`traffic for ${flags.minutes} minutes`);
  await sleep((seconds * 2000) / 3);
  await failing.stop("SIGKILL");
  await sleep((seconds * 1000) / 3);
  await takePictures();
}

/** With the files that pictures.py reads. */
function strictFolder(): string {
  const folder = join(lab.folder, STRICT);
  mkdirSync(folder);
  const { key, cert, ca } = certificates.issue(STRICT);
  for (const [name, text] of Object.entries({ key, cert, ca }))
    writeFileSync(join(folder, `${name}.pem`), text, { mode: 0o600 });
  return folder;
}

async function startTunnel(): Promise<void> {
  const tunnel = new OwnedProcess({
    name: "tunnel",
    log: join(lab.folder, "tunnel.log"),
    command: [KMESH, "tunnel", ...lab.folders],
    netns: lab.namespace.path,
  });
  processes.push(tunnel);
  await eventually("the tunnel accepts", () => tunnel.output().includes("accepts (pid"));
}

async function app(
  name: string,
  cgroup: string | undefined,
  what: "serve" | "serve-tls" | "call",
  ...args: string[]
): Promise<OwnedProcess> {
  const started = new OwnedProcess({
    name,
    log: join(lab.folder, `${name}.log`),
    command: ["/usr/bin/python3", join(import.meta.dirname, "pictures.py"), what, ...args],
    netns: lab.namespace.path,
    ...(cgroup === undefined ? {} : { cgroup }),
  });
  processes.push(started);
  if (what !== "call") await eventually(`${name} listen`, () => started.output().includes("ready"));
  return started;
}

async function map(): Promise<EdgesDocument> {
  return (await lab.told("/edges?window=300")) as EdgesDocument;
}

async function takePictures(): Promise<void> {
  const page = new OwnedProcess({
    name: "kmesh topology",
    log: join(lab.folder, "page.log"),
    command: [KMESH, "topology", "--open", ...lab.folders],
    env: { DISPLAY: "", WAYLAND_DISPLAY: "" },
  });
  processes.push(page);
  const url = await eventually("the page's URL", () => /http:\S+/.exec(page.output())?.[0]);
  browser = await Browser.start(SIZE);
  const light = await browser.open(url);
  if ((await light.page.locator(".links .lock").count()) === 0)
    throw new Error("no edge is carried by mutual TLS");
  await save(light.page, "topology");
  await light.page.locator(".problem").first().click();
  await light.page.locator(".chart").first().waitFor();
  await save(light.page, "topology-problem");
  const dark = await browser.open(url, "dark");
  await dark.page.locator(".shape.unit", { hasText: "report-worker.service" }).click();
  await dark.page.locator(".edges button", { hasText: "ledger:5432" }).click();
  await dark.page.locator(".chart").first().waitFor();
  await save(dark.page, "topology-edge");
  const complaints = [...light.complaints, ...dark.complaints];
  if (complaints.length > 0) throw new Error(`the page complained: ${complaints.join("; ")}`);
}

async function save(page: Page, name: string): Promise<void> {
  const path = join(flags.out, `${name}.png`);
  await page.mouse.move(0, 0);
  await page.screenshot({ path });
  const { size } = statSync(path);
  console.log(`${path}: ${Math.round(size / 1000)} kB`);
  if (size > MOST) throw new Error(`${path} has more than ${MOST / 1000} kB`);
}
