import { join } from "node:path";
import { CertificateStore } from "../istiod/identity/certificate-store.ts";
import { machineFingerprint, machineId } from "./machine-id.ts";

/** The machine's certificate in the state folder, bound to this machine: a cloned image can't use it. */
export function identityStore(stateDir: string, machine = machineId()): CertificateStore {
  const seal = machine === undefined ? undefined : machineFingerprint("identity", machine).toString("hex");
  return new CertificateStore(join(stateDir, "identity"), seal);
}
