/**
 * A process that exempts itself from the tables pinned at argv[2], then connects to argv[3] port argv[4]; prints "arrived" or
 * the error's code. With argv[5] "prove" it first proves the programs as an upgrade does.
 */
import { connect } from "node:net";
import { exemptSelfPinned } from "../../src/datapath/generation/exempt-pinned.ts";
import { ownCode } from "../../src/datapath/generation/programs.ts";
import { selfTest } from "../../src/datapath/generation/self-test.ts";

const [, , bpffs = "", address = "", port = "", mode = ""] = process.argv;
if (mode !== "not-exempt") exemptSelfPinned(bpffs);
if (mode === "prove") {
  const { untried } = selfTest(bpffs, ownCode(), "all");
  if (untried !== undefined) throw new Error(untried);
}
const socket = connect(Number(port), address);
socket.on("connect", () => {
  console.log("arrived");
  socket.destroy();
});
socket.on("error", (error) => console.log("code" in error ? error.code : error.message));
