/** A server that takes mutual TLS of the mesh alone, and answers each line with "strict" and who called. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { eventually, OwnedProcess } from "../lab/process.ts";

const SCRIPT = `
const [, , file, address, port] = process.argv;
const { key, cert, ca } = JSON.parse(require("node:fs").readFileSync(file, "utf8"));
require("node:tls").createServer({ key, cert, ca, requestCert: true, rejectUnauthorized: true }, (socket) => {
  const names = socket.getPeerCertificate().subjectaltname;
  socket.on("data", () => socket.write("strict " + names + " " + socket.servername + "\\n"));
  socket.on("error", () => {});
}).listen(Number(port), address, () => console.log("ready"));
`;

export const StrictPeer = {
  /** Resolves when it listens; its address must be there. The caller stops it. */
  async start(options: {
    folder: string;
    netns: string;
    identity: { key: string; chain: string; roots: string };
    at: { address: string; port: number };
  }): Promise<OwnedProcess> {
    const { folder, netns, identity, at } = options;
    const files = join(folder, "strict-peer.json");
    const script = join(folder, "strict-peer.cjs");
    const { key, chain, roots } = identity;
    writeFileSync(files, JSON.stringify({ key, cert: chain, ca: roots }), { mode: 0o600 });
    writeFileSync(script, SCRIPT);
    const started = new OwnedProcess({
      name: "strict peer",
      log: join(folder, "strict-peer.log"),
      command: [process.execPath, script, files, at.address, String(at.port)],
      netns,
    });
    await eventually("the strict peer listens", () => started.output().includes("ready"));
    return started;
  },
};
