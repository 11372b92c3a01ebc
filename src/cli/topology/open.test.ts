import { expect, test } from "bun:test";
import { opening } from "./open.ts";

const server = { url: "http://127.0.0.1:4711/topology/#secret", port: 4711 };

test("over SSH the line for the other side is printed, also through sudo", () => {
  const text = opening(server, {
    SSH_CONNECTION: "192.0.2.1 50000 198.51.100.7 22",
    USER: "root",
    SUDO_USER: "anna",
  });
  expect(text).toContain(server.url);
  expect(text).toContain("ssh -L 4711:127.0.0.1:4711 anna@198.51.100.7\n");
  expect(opening(server, { USER: "ben" })).toContain("ssh -L 4711:127.0.0.1:4711 ben@");
});

test("with a display there is only the URL", () => {
  for (const display of [{ DISPLAY: ":0" }, { WAYLAND_DISPLAY: "wayland-0" }])
    expect(opening(server, display)).not.toContain("ssh");
});
