/** Names for completion: services of the mesh, units of systemd. Empty when the answer takes too long for a key press. */
import { spawnSync } from "node:child_process";
import { askAgent } from "../../admin/client.ts";
import { adminSocket, readerSocket } from "../../admin/status.ts";
import { readFolders } from "../../config/config.ts";
import { sourcesOf } from "../../config/sources.ts";
import type { Summary } from "../../datapath/inspect/state.ts";
import type { Names } from "./words.ts";

/** Time limit for an answer of the agent or of systemd, milliseconds. */
const PATIENCE = 1_500;

export const MACHINE_NAMES: Names = {
  async services() {
    try {
      const { runDir } = readFolders(sourcesOf({}, process.env));
      const socket = process.geteuid?.() === 0 ? adminSocket(runDir) : readerSocket(runDir);
      const answer = (await askAgent(socket, "/status", PATIENCE)) as { kernel?: Summary } | undefined;
      const names = answer?.kernel?.services.map(({ service }) => service) ?? [];
      return names.filter((name) => name !== "").sort();
    } catch {
      return [];
    }
  },
  units() {
    const list = [
      "list-units",
      "--all",
      "--type=service,scope,slice",
      "--plain",
      "--no-legend",
      "--no-pager",
    ];
    const { stdout } = spawnSync("systemctl", list, { encoding: "utf8", timeout: PATIENCE });
    return (stdout ?? "").split("\n").flatMap((line) => line.trim().split(/\s+/)[0] || []);
  },
};
