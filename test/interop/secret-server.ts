/**
 * The secrets that a sidecar's Envoy asks its local agent for (SDS over a unix socket), as pilot-agent serves them:
 * `default` is the workload's certificate, `ROOTCA` the roots of the mesh.
 */
import { Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import { Reader, Writer } from "protobufjs/minimal.js";

const PATH = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
const SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

export interface Secrets {
  /** PEM. */
  key: string;
  chain: string;
  roots: string;
}

export class SecretServer {
  readonly #server = new Server();
  /** Open streams, each with the names that it asked for. */
  readonly #asked = new Map<ServerDuplexStream<Buffer, Uint8Array>, readonly string[]>();
  #secrets: Secrets;
  #version = 1;

  private constructor(secrets: Secrets) {
    this.#secrets = secrets;
  }

  /** Listens at the unix socket `path`. The caller closes it. */
  static async start(path: string, secrets: Secrets): Promise<SecretServer> {
    const server = new SecretServer(secrets);
    const bytes = (value: Uint8Array) => Buffer.from(value);
    server.#server.addService(
      {
        StreamSecrets: {
          path: PATH,
          requestStream: true,
          responseStream: true,
          requestSerialize: bytes,
          requestDeserialize: (value: Buffer) => value,
          responseSerialize: bytes,
          responseDeserialize: (value: Buffer) => value,
        },
      },
      { StreamSecrets: (call: ServerDuplexStream<Buffer, Uint8Array>) => server.#serve(call) },
    );
    await new Promise<void>((resolve, reject) =>
      server.#server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      ),
    );
    return server;
  }

  /** Sends other secrets to whoever asked. */
  replace(secrets: Secrets): void {
    this.#secrets = secrets;
    this.#version++;
    for (const [call, names] of this.#asked) call.write(responseOf(names, secrets, this.#version));
  }

  close(): void {
    this.#server.forceShutdown();
  }

  #serve(call: ServerDuplexStream<Buffer, Uint8Array>): void {
    call.on("error", () => {});
    call.on("close", () => this.#asked.delete(call));
    call.on("end", () => {
      this.#asked.delete(call);
      call.end();
    });
    call.on("data", (request: Buffer) => {
      const { names, nonce } = readRequest(request);
      // With a nonce it is an acknowledgement.
      if (nonce !== "") return;
      this.#asked.set(call, names);
      call.write(responseOf(names, this.#secrets, this.#version));
    });
  }
}

/** DiscoveryRequest{resource_names 3, response_nonce 5} */
function readRequest(request: Uint8Array): { names: string[]; nonce: string } {
  const reader = Reader.create(request);
  const names: string[] = [];
  let nonce = "";
  while (reader.pos < reader.len) {
    const tag = reader.uint32();
    if (tag >>> 3 === 3) names.push(reader.string());
    else if (tag >>> 3 === 5) nonce = reader.string();
    else reader.skipType(tag & 7);
  }
  return { names, nonce };
}

const text = (field: number, value: string) =>
  Writer.create()
    .uint32((field << 3) | 2)
    .string(value)
    .finish();
const message = (field: number, ...parts: Uint8Array[]) =>
  Writer.create()
    .uint32((field << 3) | 2)
    .bytes(Buffer.concat(parts))
    .finish();

/** DiscoveryResponse{version_info 1, resources 2 (Any{type_url 1, value 2}), type_url 4, nonce 5} */
function responseOf(names: readonly string[], secrets: Secrets, version: number): Uint8Array {
  const resources = names.map((name) =>
    message(2, text(1, SECRET), message(2, text(1, name), secretOf(name, secrets))),
  );
  return Buffer.concat([text(1, `${version}`), ...resources, text(4, SECRET), text(5, `${version}`)]);
}

/** Secret{tls_certificate 2 {certificate_chain 1, private_key 2} | validation_context 4 {trusted_ca 1}}; inline_string is 3. */
function secretOf(name: string, { key, chain, roots }: Secrets): Uint8Array {
  if (name === "ROOTCA") return message(4, message(1, text(3, roots)));
  return message(2, message(1, text(3, chain)), message(2, text(3, key)));
}
