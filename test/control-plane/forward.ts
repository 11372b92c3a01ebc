/**
 * Runs inside a network namespace and passes the bytes of unix sockets to TCP ports there, so that a test
 * outside the namespace reaches what listens on its loopback.
 *
 * Arguments: PATH=PORT ... ; prints "ready" when all listen.
 */
import { connect, createServer } from "node:net";

const pairs = process.argv.slice(2).map((argument) => {
  const at = argument.lastIndexOf("=");
  return { path: argument.slice(0, at), port: Number(argument.slice(at + 1)) };
});
let waiting = pairs.length;
for (const { path, port } of pairs) {
  const server = createServer((near) => {
    const far = connect(port, "127.0.0.1");
    near.pipe(far);
    far.pipe(near);
    near.on("error", () => far.destroy());
    far.on("error", () => near.destroy());
    near.on("close", () => far.destroy());
    far.on("close", () => near.destroy());
  });
  server.listen(path, () => {
    waiting -= 1;
    if (waiting === 0) console.log("ready");
  });
}
