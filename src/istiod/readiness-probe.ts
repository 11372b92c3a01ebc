/** A WorkloadGroup's probe, as mesh.yaml and the configuration have it. */
const KINDS = ["httpGet", "tcpSocket", "exec", "grpc"];

/** Why a value is no probe, for a sentence that begins with its name; undefined when it is one. */
export function faultOfProbe(value: unknown): string | undefined {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return "holds no keys and values";
  const kinds = KINDS.filter((kind) => kind in value);
  return kinds.length === 1 ? undefined : `names none, or several, of ${KINDS.join(", ")}`;
}
