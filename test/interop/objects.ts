/** Kubernetes and Istio objects as the tests need them, in few words. */
import type { KubeObject } from "../control-plane/kube.ts";

export interface PortSpec {
  name: string;
  port: number;
  targetPort?: number;
}

/** A Service; without `clusterIP` a headless one. */
export function service(
  name: string,
  clusterIP: string | string[] | undefined,
  ports: PortSpec[],
): KubeObject {
  const all = clusterIP === undefined ? ["None"] : [clusterIP].flat();
  return {
    apiVersion: "v1",
    kind: "Service",
    metadata: { name, namespace: "shop" },
    spec: {
      clusterIP: all[0],
      clusterIPs: all,
      ...(clusterIP === undefined
        ? {}
        : {
            ipFamilyPolicy: all.length > 1 ? "RequireDualStack" : "SingleStack",
            ipFamilies: all.map((address) => (address.includes(":") ? "IPv6" : "IPv4")),
          }),
      ports: ports.map(({ name, port, targetPort }) => ({ name, port, targetPort: targetPort ?? port })),
    },
  };
}

/** The endpoints of a Service, one family a slice. */
export function slice(of: string, addresses: string[], ports: PortSpec[], labels = {}): KubeObject {
  const v6 = addresses.some((address) => address.includes(":"));
  return {
    apiVersion: "discovery.k8s.io/v1",
    kind: "EndpointSlice",
    metadata: {
      name: `${of}-${v6 ? "v6" : "v4"}`,
      namespace: "shop",
      labels: { "kubernetes.io/service-name": of, ...labels },
    },
    addressType: v6 ? "IPv6" : "IPv4",
    ports: ports.map(({ name, port, targetPort }) => ({ name, port: targetPort ?? port })),
    endpoints: addresses.map((address) => ({ addresses: [address], conditions: { ready: true } })),
  };
}

function istio(kind: string, name: string, spec: Record<string, unknown>): KubeObject {
  return { apiVersion: "networking.istio.io/v1", kind, metadata: { name, namespace: "shop" }, spec };
}

/** The host of ServiceEntry `name`. */
export function hostOf(name: string): string {
  return `${name}.shop.internal`;
}

export interface EntryEndpoint {
  serviceAccount?: string;
  address: string;
  labels?: Record<string, string>;
  locality?: string;
  weight?: number;
  ports?: Record<string, number>;
}

/** A ServiceEntry of the host NAME.shop.internal. */
export function serviceEntry(
  name: string,
  spec: {
    addresses?: string[];
    ports: { number: number; name: string; protocol: string; targetPort?: number }[];
    endpoints?: EntryEndpoint[];
    resolution?: "STATIC" | "DNS" | "DNS_ROUND_ROBIN" | "NONE";
    location?: "MESH_INTERNAL" | "MESH_EXTERNAL";
  },
): KubeObject {
  return istio("ServiceEntry", name, {
    hosts: [hostOf(name)],
    location: "MESH_INTERNAL",
    resolution: "STATIC",
    ...spec,
  });
}

/** The same of the host *.NAME.shop.internal. */
export function wildcard(name: string, spec: Parameters<typeof serviceEntry>[1]): KubeObject {
  const entry = serviceEntry(name, spec);
  return { ...entry, spec: { ...(entry.spec as object), hosts: [`*.${hostOf(name)}`] } };
}

export function destinationRule(name: string, host: string, spec: Record<string, unknown>): KubeObject {
  return istio("DestinationRule", name, { host, ...spec });
}

export function virtualService(name: string, host: string, spec: Record<string, unknown>): KubeObject {
  return istio("VirtualService", name, { hosts: [host], ...spec });
}

/** Route shares by subset, such as {v1: 80, v2: 20}, in the form of a VirtualService's `route`. */
export function shares(host: string, weights: Record<string, number>): unknown[] {
  return Object.entries(weights).map(([subset, weight]) => ({ destination: { host, subset }, weight }));
}

/** The same object in another namespace. */
export function inNamespace(namespace: string, object: KubeObject): KubeObject {
  return { ...object, metadata: { ...object.metadata, namespace } };
}

/** A pod that nobody runs, of the headless service `subdomain`: its name is its host name. */
export function pod(name: string, subdomain: string): KubeObject {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace: "shop" },
    spec: {
      hostname: name,
      subdomain,
      serviceAccountName: "vm",
      nodeName: "nowhere",
      containers: [{ name: "app", image: "none.invalid/app" }],
    },
  };
}

/** What a kubelet would say of a pod that runs at `address`: the body of its status. */
export function running(of: KubeObject, address: string): KubeObject {
  return {
    ...of,
    status: {
      phase: "Running",
      podIP: address,
      podIPs: [{ ip: address }],
      conditions: [{ type: "Ready", status: "True" }],
    },
  };
}
