/** What a mesh makes of a VM: its WorkloadEntry in the kube API, and the endpoints that another sidecar is sent. */
import { join } from "node:path";
import { envoy } from "../../src/kernel-native/resources/envoy.gen.js";
import { AdsClient } from "../control-plane/ads-client.ts";
import type { ControlPlane } from "../control-plane/control-plane.ts";
import { KubeError, type KubeObject } from "../control-plane/kube.ts";
import { eventually, OwnedProcess } from "../lab/process.ts";
import type { MeshLab } from "./mesh-lab.ts";

export interface Entry {
  uid: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  address: string;
  serviceAccount: string;
  /** Absent before the first health report. */
  health?: { healthy: boolean; message: string };
}

/** A WorkloadEntry of namespace shop as the kube API has it; undefined when there is none. */
export async function entryOf(plane: ControlPlane, name: string): Promise<Entry | undefined> {
  const path = `/apis/networking.istio.io/v1/namespaces/shop/workloadentries/${name}`;
  let object: unknown;
  try {
    object = await plane.kube.get(path);
  } catch (error) {
    if (error instanceof KubeError && error.status === 404) return undefined;
    throw error;
  }
  const { metadata, spec, status } = object as {
    metadata: { uid: string; labels?: Record<string, string>; annotations?: Record<string, string> };
    spec: { address: string; serviceAccount?: string };
    status?: { conditions?: { type: string; status: string; message?: string }[] };
  };
  const condition = status?.conditions?.find(({ type }) => type === "Healthy");
  return {
    uid: metadata.uid,
    labels: metadata.labels ?? {},
    annotations: metadata.annotations ?? {},
    address: spec.address,
    serviceAccount: spec.serviceAccount ?? "",
    ...(condition
      ? { health: { healthy: condition.status === "True", message: condition.message ?? "" } }
      : {}),
  };
}

/** Waits until istiod has noted that the machine is connected, and gives its entry. */
export function connectedEntry(plane: ControlPlane, name: string, since = ""): Promise<Entry> {
  return eventually(
    `WorkloadEntry ${name} connected`,
    async () => {
      const entry = await entryOf(plane, name);
      const at = entry?.annotations["istio.io/connectedAt"] ?? "";
      return at > since ? entry : undefined;
    },
    20_000,
  );
}

/**
 * Does `action`, after which the agent connects anew, and requires that the WorkloadEntry is still the same object, not
 * one that was made again. Gives it.
 */
export async function keepsEntry(
  plane: ControlPlane,
  name: string,
  action: () => Promise<unknown>,
): Promise<Entry> {
  const before = await connectedEntry(plane, name);
  await action();
  const after = await connectedEntry(plane, name, before.annotations["istio.io/connectedAt"]);
  if (after.uid !== before.uid)
    throw new Error(`WorkloadEntry ${name} was deleted and made again: ${before.uid}, then ${after.uid}`);
  return after;
}

/** A WorkloadGroup of namespace shop; its machines have the label app: NAME. */
export function workloadGroup(name: string, more: Record<string, unknown> = {}): KubeObject {
  return {
    apiVersion: "networking.istio.io/v1",
    kind: "WorkloadGroup",
    metadata: { name, namespace: "shop" },
    spec: { metadata: { labels: { app: name } }, template: { serviceAccount: "vm" }, ...more },
  };
}

/** A service NAME.shop.internal of all workloads with the label app: NAME; its port 7000 is their 8080. */
export function workloadService(name: string, address: string): KubeObject {
  return {
    apiVersion: "networking.istio.io/v1",
    kind: "ServiceEntry",
    metadata: { name, namespace: "shop" },
    spec: {
      hosts: [`${name}.shop.internal`],
      addresses: [address],
      location: "MESH_INTERNAL",
      resolution: "STATIC",
      ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8080 }],
      workloadSelector: { labels: { app: name } },
    },
  };
}

/** Another sidecar of the mesh, that only looks. */
export class Peer {
  readonly #forward: OwnedProcess;
  readonly #path: string;
  readonly #endpoints = new Map<string, Uint8Array>();
  #client: AdsClient;
  #closed = false;

  private constructor(forward: OwnedProcess, path: string) {
    this.#forward = forward;
    this.#path = path;
    this.#client = this.#open();
  }

  #open(): AdsClient {
    const client: AdsClient = new AdsClient({
      istiod: `unix:${this.#path}`,
      node: { ip: "172.31.99.9", name: "peer", namespace: "shop" },
      received: ({ type, resources }) => {
        if (type === "endpoints") for (const { name, bytes } of resources) this.#endpoints.set(name, bytes);
      },
      ended: () => {
        if (this.#closed || client !== this.#client) return;
        setTimeout(() => {
          if (!this.#closed && client === this.#client) this.#client = this.#open();
        }, 200);
      },
    });
    return client;
  }

  static async connect(lab: MeshLab): Promise<Peer> {
    const path = join(lab.folder, "peer.sock");
    const forward = new OwnedProcess({
      name: "peer's forwarder",
      log: join(lab.folder, "peer.log"),
      command: [
        process.execPath,
        join(import.meta.dirname, "../control-plane/forward.ts"),
        `${path}=${lab.plane.ports.grpc}`,
      ],
      netns: lab.namespace.path,
    });
    await eventually("the forwarder listens", () => forward.output().includes("ready"));
    const peer = new Peer(forward, path);
    await peer.#client.first;
    return peer;
  }

  /** What it is sent for a service of workloadService: the addresses, and how they are to be spoken to. */
  endpointsOf(service: string): { address: string; mtls: boolean }[] {
    const bytes = this.#endpoints.get(`outbound|7000||${service}.shop.internal`);
    if (!bytes) return [];
    const { endpoints } = envoy.ClusterLoadAssignment.decode(bytes);
    return (endpoints ?? [])
      .flatMap(({ lbEndpoints }) => lbEndpoints ?? [])
      .map((each) => ({
        address: each.endpoint?.address?.socketAddress?.address ?? "",
        // envoy.transport_socket_match: {tlsMode: istio}
        mtls: Buffer.from(envoy.LbEndpoint.encode(each).finish()).includes("tlsMode"),
      }));
  }

  /** Waits until it is sent exactly these, each ADDRESS or ADDRESS+mtls. */
  async sees(service: string, ...wanted: string[]): Promise<void> {
    const now = () =>
      this.endpointsOf(service).map(({ address, mtls }) => `${address}${mtls ? "+mtls" : ""}`);
    await eventually(`${service} is ${wanted.join(", ") || "empty"}`, () => `${now()}` === `${wanted}`).catch(
      (error: Error) => {
        throw new Error(`${error.message}; it is ${now().join(", ") || "empty"}`);
      },
    );
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#client.close();
    await this.#forward.stop("SIGKILL");
  }
}
