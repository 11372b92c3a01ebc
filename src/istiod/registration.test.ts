import { expect, test } from "bun:test";
import { explainRefusal } from "./identity/credentials.ts";
import {
  commandsForAnother,
  commandsForEntry,
  commandsForHealth,
  differencesOf,
  explainRegistration,
  registeredName,
} from "./registration.ts";

const GROUP = { namespace: "shop", serviceAccount: "vm", autoRegisterGroup: "vms" };
const ENTRY = { namespace: "shop", serviceAccount: "vm", workloadEntry: "vm-1" };

test("a group or an entry that is missing, with the command that makes it", () => {
  expect(
    explainRegistration(
      "auto-registration WorkloadEntry of vm1.shop failed: cannot find WorkloadGroup shop/vms",
      GROUP,
    ),
  ).toBe(
    "there is no WorkloadGroup vms in namespace shop: make it with istioctl x workload group create --name vms --namespace shop --serviceAccount vm | kubectl apply -f -, or name another with --workload-group",
  );
  expect(
    explainRegistration(
      "proxy metadata indicates that it must correspond to an existing WorkloadEntry, however WorkloadEntry shop/vm-1 is not found",
      ENTRY,
    ),
  ).toStartWith("there is no WorkloadEntry vm-1 in namespace shop: apply it, or");
});

test("another namespace or service account, and nobody's", () => {
  const said = 'registration of WorkloadEntry service account mismatch: "vm" vs "db"';
  expect(explainRegistration(said, GROUP)).toBe(
    "the WorkloadGroup vms is for service account db, and this machine is vm: set spec.template.serviceAccount there to vm, or --service-account to db with a token of db",
  );
  expect(explainRegistration(said, ENTRY)).toContain("WorkloadEntry vm-1 is for service account db");
  expect(
    explainRegistration('registration of WorkloadEntry namespace mismatch: "shop" vs "back"', ENTRY),
  ).toContain("is in namespace back, and this machine is of namespace shop");
  expect(explainRegistration("registration of WorkloadEntry requires a verified identity", GROUP)).toContain(
    "--ca and --token",
  );
  expect(explainRegistration("something else", GROUP)).toBeUndefined();
});

test("the stream's end tells it", () => {
  const status = { code: 9, details: "x failed: cannot find WorkloadGroup shop/vms" };
  const target = { host: "istiod", port: 15012 };
  expect(explainRefusal(status, target, { kind: "plaintext" }, "nothing", GROUP)).toStartWith(
    "istiod at istiod:15012 does not register this machine: there is no WorkloadGroup vms",
  );
});

test("what an entry needs that was applied by hand, or made by another agent", () => {
  expect(commandsForEntry("shop", "vm-1")).toEqual([
    "kubectl label workloadentry vm-1 --namespace shop --overwrite security.istio.io/tlsMode=disabled networking.istio.io/tunnel-",
  ]);
  expect(commandsForEntry("shop", "vm-1", { hbone: true, mtls: true })[0]).toEndWith(
    "--overwrite security.istio.io/tlsMode=istio networking.istio.io/tunnel=http",
  );
  expect(commandsForHealth("shop", "vm-1")[0]).toBe(
    "kubectl annotate workloadentry vm-1 --namespace shop --overwrite proxy.istio.io/health-checks-enabled=true",
  );
  expect(commandsForAnother("shop", "vms-1")[0]).toBe("kubectl delete workloadentry vms-1 --namespace shop");
});

test("the name that istiod gives an entry", () => {
  const name = (ips: string[], network = "") => registeredName({ autoRegisterGroup: "vms", ips, network });
  expect(name(["10.0.0.5", "fd00::5"])).toBe("vms-10.0.0.5");
  expect(name(["fd00::5"], "net1")).toBe("vms-fd00--5-net1");
  expect(registeredName({ autoRegisterGroup: "g".repeat(300), ips: ["10.0.0.5"] })?.length).toBe(253);
  expect(registeredName({ ips: ["10.0.0.5"] })).toBeUndefined();
});

test("what peers send and nobody takes, and the reverse", () => {
  const reach = { hbone: true, mtls: true };
  const seen = { plaintext: [], mtls: [], hbone: [] };
  expect(differencesOf({ ...seen, plaintext: ["a:80"] }, reach)).toEqual({
    unserved: [],
    unused: ["mTLS", "HBONE"],
  });
  expect(differencesOf({ ...seen, hbone: ["a:80"] }, reach)).toEqual({ unserved: [], unused: ["mTLS"] });
  // Of both, sidecars are told of mTLS alone.
  expect(differencesOf({ ...seen, mtls: ["a:80"] }, reach)).toEqual({ unserved: [], unused: [] });
  expect(differencesOf({ ...seen, mtls: ["a:80"], hbone: ["a:80"] }).unserved).toEqual(["mTLS", "HBONE"]);
  expect(differencesOf(seen, reach)).toEqual({ unserved: [], unused: [] });
  // The workload API says nothing of mTLS.
  expect(differencesOf({ plaintext: [], hbone: ["a:80"] }, reach)).toEqual({ unserved: [], unused: [] });
  expect(differencesOf({ plaintext: ["a:80"], hbone: [] }, reach).unused).toEqual(["HBONE"]);
});
