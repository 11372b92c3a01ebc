/** The part of the Kubernetes API that the tests need, over https with a bearer token. */

/** One object as it is applied; whatever the kind needs beside the metadata. */
export interface KubeObject {
  apiVersion: string;
  kind: string;
  metadata: {
    name: string;
    namespace?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
  [field: string]: unknown;
}

const CLUSTER_SCOPED = new Set(["Namespace", "CustomResourceDefinition", "Node", "GatewayClass"]);

export class KubeError extends Error {
  constructor(
    readonly status: number,
    method: string,
    path: string,
    body: string,
  ) {
    super(`${method} ${path}: ${status} ${body.slice(0, 500)}`);
    this.name = "KubeError";
  }
}

/** Path of the collection of `kind`, such as /api/v1/namespaces/shop/services. */
export function collectionPath(apiVersion: string, kind: string, namespace: string | undefined): string {
  const lower = kind.toLowerCase();
  const plural = /[^aeiou]y$/.test(lower)
    ? `${lower.slice(0, -1)}ies`
    : lower.endsWith("s")
      ? `${lower}es`
      : `${lower}s`;
  const root = apiVersion.includes("/") ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  return CLUSTER_SCOPED.has(kind)
    ? `${root}/${plural}`
    : `${root}/namespaces/${namespace ?? "default"}/${plural}`;
}

export class KubeApi {
  readonly #base: string;
  readonly #token: string;
  readonly #socket: string | undefined;

  /** `socket` is a unix socket that leads to the server at `base`, for one in another network namespace. */
  constructor(base: string, token: string, socket?: string) {
    this.#base = base;
    this.#token = token;
    this.#socket = socket;
  }

  /** One request; gives the body's text, throws a KubeError for a status of 300 and more. */
  async request(
    method: string,
    path: string,
    body?: string,
    contentType = "application/json",
  ): Promise<string> {
    const response = await fetch(this.#base + path, {
      method,
      headers: { authorization: `Bearer ${this.#token}`, "content-type": contentType },
      ...(body === undefined ? {} : { body }),
      ...(this.#socket === undefined ? {} : { unix: this.#socket }),
      proxy: "",
      tls: { rejectUnauthorized: false },
    });
    const text = await response.text();
    if (response.status >= 300) throw new KubeError(response.status, method, path, text);
    return text;
  }

  async get(path: string): Promise<unknown> {
    return JSON.parse(await this.request("GET", path));
  }

  /** Creates or changes objects, in their order, by server-side apply: what was applied before and is left out now goes. */
  async apply(...objects: KubeObject[]): Promise<void> {
    for (const object of objects) {
      const { name, namespace } = object.metadata;
      const path = collectionPath(object.apiVersion, object.kind, namespace);
      await this.request(
        "PATCH",
        `${path}/${name}?fieldManager=kmesh-test&force=true`,
        JSON.stringify(object),
        "application/apply-patch+yaml",
      );
    }
  }

  /** Sets the `status` of an object that exists, as the controller of its kind does. */
  async applyStatus(object: KubeObject): Promise<void> {
    const { name, namespace } = object.metadata;
    await this.request(
      "PATCH",
      `${collectionPath(object.apiVersion, object.kind, namespace)}/${name}/status`,
      JSON.stringify({ status: object.status }),
      "application/merge-patch+json",
    );
  }

  /** Deletes objects; one that is not there is fine. */
  async remove(...objects: KubeObject[]): Promise<void> {
    for (const { apiVersion, kind, metadata } of objects) {
      const path = `${collectionPath(apiVersion, kind, metadata.namespace)}/${metadata.name}`;
      try {
        await this.request("DELETE", path);
      } catch (error) {
        if (!(error instanceof KubeError) || error.status !== 404) throw error;
      }
    }
  }

  /** A token of a ServiceAccount for `audience`, as `istioctl x workload entry configure` gets it. */
  async serviceAccountToken(namespace: string, name: string, audience = "istio-ca"): Promise<string> {
    const answer = await this.request(
      "POST",
      `/api/v1/namespaces/${namespace}/serviceaccounts/${name}/token`,
      JSON.stringify({
        apiVersion: "authentication.k8s.io/v1",
        kind: "TokenRequest",
        spec: { audiences: [audience], expirationSeconds: 3600 },
      }),
    );
    const token: unknown = JSON.parse(answer)?.status?.token;
    if (typeof token !== "string") throw new Error(`no token in ${answer.slice(0, 200)}`);
    return token;
  }
}
