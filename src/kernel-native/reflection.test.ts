import { expect, test } from "bun:test";
import { RecordingSink } from "../../test/lab/scripted-istiod.ts";
import { type Reflected, Reflection } from "./reflection.ts";
import { envoy } from "./resources/envoy.gen.js";

const ADDRESS = "10.0.0.5";

/** Endpoints by address; those after "+" are to be spoken to in mutual TLS. */
function assignment(...addresses: string[]): Uint8Array {
  return envoy.ClusterLoadAssignment.encode({
    clusterName: "x",
    endpoints: addresses.map((each) => ({
      lbEndpoints: [
        {
          endpoint: { address: { socketAddress: { address: each.replace("+", ""), portValue: 80 } } },
          ...(each.startsWith("+")
            ? {
                metadata: {
                  filterMetadata: {
                    "envoy.transport_socket_match": { fields: { tlsMode: { stringValue: "istio" } } },
                  },
                },
              }
            : {}),
        },
      ],
    })),
  }).finish();
}

function reflecting(address = ADDRESS) {
  const sink = new RecordingSink();
  const told: Reflected[] = [];
  const reflection = new Reflection(sink, address, (reflected) => told.push(reflected));
  const push = (endpoints: Record<string, Uint8Array>) => {
    for (const [name, bytes] of Object.entries(endpoints)) reflection.upsert("endpoints", name, bytes);
    reflection.commit({ version: "v", first: false });
  };
  return { sink, told, reflection, push };
}

test("the services that this machine is an endpoint of, by what is sent to it; told when that changes", () => {
  const { told, push, reflection, sink } = reflecting();
  push({
    "outbound|80||a.shop": assignment("10.0.0.4", "+10.0.0.5"),
    "outbound|80|v1|a.shop": assignment("+10.0.0.5"),
    "outbound|81||b.shop": assignment("10.0.0.5", "+10.0.0.6"),
    // Its text is in there, and it is another's.
    "outbound|82||c.shop": assignment("10.0.0.55", "+110.0.0.5"),
  });
  push({ "outbound|83||d.shop": assignment("10.0.0.7") });
  push({ "outbound|80||a.shop": assignment("10.0.0.5"), "outbound|80|v1|a.shop": assignment() });
  reflection.remove("endpoints", "outbound|81||b.shop");
  reflection.commit({ version: "v", first: false });
  expect(told).toEqual([
    { plaintext: ["b.shop:81"], mtls: ["a.shop:80"], hbone: [] },
    { plaintext: ["a.shop:80", "b.shop:81"], mtls: [], hbone: [] },
    { plaintext: ["a.shop:80"], mtls: [], hbone: [] },
  ]);
  expect(sink.commits.length).toBe(4);
  expect(sink.calls.filter((call) => call.startsWith("upsert")).length).toBe(7);
});

test("one that says both is worth the warning", () => {
  const { told, push } = reflecting("fd00::5");
  push({ "outbound|80||a.shop": assignment("fd00::5", "+fd00::5", "10.0.0.5") });
  expect(told).toEqual([{ plaintext: [], mtls: ["a.shop:80"], hbone: [] }]);
});

test("what the sink refuses is not looked at", () => {
  const { told, reflection } = reflecting();
  const bad = new TextEncoder().encode("bad 10.0.0.5");
  expect(() => reflection.upsert("endpoints", "outbound|80||a.shop", bad)).toThrow("says bad");
  reflection.commit({ version: "v", first: false });
  expect(told).toEqual([]);
});
