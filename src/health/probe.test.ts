import { expect, test } from "bun:test";
import { formatQuestion, MalformedProbe, parseProbe } from "./probe.ts";

test("Istio's defaults", () => {
  expect(parseProbe({ httpGet: { port: 8080 } })).toEqual({
    question: { kind: "http", scheme: "http", port: 8080, path: "/", headers: [] },
    initialDelay: 0,
    timeout: 1_000,
    period: 10_000,
    successThreshold: 1,
    failureThreshold: 1,
  });
});

test("all fields; zero stands for the default, as in protobuf", () => {
  const probe = parseProbe({
    httpGet: {
      port: 8443,
      path: "ready",
      host: "app.internal",
      scheme: "HTTPS",
      httpHeaders: [{ name: "X-Probe", value: "yes" }],
    },
    initialDelaySeconds: 5,
    timeoutSeconds: 0,
    periodSeconds: 3,
    successThreshold: 2,
    failureThreshold: 4,
  });
  expect(probe).toEqual({
    question: {
      kind: "http",
      scheme: "https",
      host: "app.internal",
      port: 8443,
      path: "/ready",
      headers: [{ name: "X-Probe", value: "yes" }],
    },
    initialDelay: 5_000,
    timeout: 1_000,
    period: 3_000,
    successThreshold: 2,
    failureThreshold: 4,
  });
});

test("TCP, exec and gRPC", () => {
  expect(parseProbe({ tcpSocket: { port: 5432, host: "[::1]" } }).question).toEqual({
    kind: "tcp",
    host: "::1",
    port: 5432,
  });
  expect(parseProbe({ exec: { command: ["/bin/check", "-v"] } }).question).toEqual({
    kind: "exec",
    command: ["/bin/check", "-v"],
  });
  expect(parseProbe({ grpc: { port: 9000 } }).question).toEqual({ kind: "grpc", port: 9000, service: "" });
});

test("what is wrong is named by its field", () => {
  const wrong: [unknown, string][] = [
    ["GET /", "it holds no fields"],
    [{}, "it names none of httpGet, tcpSocket, grpc, exec, and must name one"],
    [{ httpGet: { port: 1 }, exec: { command: ["x"] } }, "it names httpGet and exec of"],
    [{ httpGet: {} }, "httpGet.port is missing"],
    [{ httpGet: { port: "8080" } }, "httpGet.port is not a whole number"],
    [{ tcpSocket: { port: 70_000 } }, "tcpSocket.port is not a port"],
    [{ httpGet: { port: 80, scheme: "ftp" } }, "httpGet.scheme is neither HTTP nor HTTPS"],
    [{ httpGet: { port: 80, paht: "/" } }, "httpGet.paht is not a field of it (those are path, port"],
    [
      { httpGet: { port: 80, httpHeaders: [{ name: "a b", value: "" }] } },
      "httpGet.httpHeaders[0].name is not the name of a header",
    ],
    [
      { httpGet: { port: 80, httpHeaders: [{ name: "a", value: "x\r\ny" }] } },
      "httpGet.httpHeaders[0].value can't be",
    ],
    [{ exec: { command: [] } }, "exec.command is empty"],
    [{ exec: { command: "true" } }, "exec.command is not a list"],
    [{ exec: { command: ["a", 1] } }, "exec.command is not a list of texts"],
    [{ exec: { command: ["a"] }, periodSeconds: 1.5 }, "periodSeconds is not a whole number"],
    [{ exec: { command: ["a"] }, failureThreshold: -1 }, "failureThreshold is not a whole number"],
    [{ exec: { command: ["a"] }, period: 1 }, "period is not a field of it"],
  ];
  for (const [json, message] of wrong) {
    expect(() => parseProbe(json)).toThrow(MalformedProbe);
    expect(() => parseProbe(json)).toThrow(message);
  }
});

test("the question in words", () => {
  const at = "fd00::5";
  expect(formatQuestion(parseProbe({ httpGet: { port: 80, path: "/r" } }).question, at)).toBe(
    "GET http://[fd00::5]:80/r",
  );
  expect(formatQuestion(parseProbe({ tcpSocket: { port: 80, host: "db" } }).question, at)).toBe(
    "TCP connect to db:80",
  );
  expect(formatQuestion(parseProbe({ exec: { command: ["a", "b"] } }).question, at)).toBe("exec a b");
  expect(formatQuestion(parseProbe({ grpc: { port: 1, service: "s" } }).question, "10.0.0.1")).toBe(
    "gRPC health of s at 10.0.0.1:1",
  );
});
