/** The readiness probe of a WorkloadGroup, as mesh.yaml and the configuration hold it. */
import { MalformedProbe, parseProbe } from "../../health/probe.ts";

/** Why a value is no probe, as the end of a sentence that begins with its name; undefined when it is one. */
export function faultOfProbe(value: unknown): string | undefined {
  try {
    parseProbe(value);
    return undefined;
  } catch (error) {
    if (error instanceof MalformedProbe) return `can't be used: ${error.message}`;
    throw error;
  }
}
