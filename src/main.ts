import { keepHeapSmall } from "./cli/framework/small-heap.ts";

const command = process.argv[2];
// Sockets that were handed over do not outlive another start. Who hands them over gives the environment, too.
if (command === "run" || (command === "tunnel" && process.env.LISTEN_FDS === undefined)) keepHeapSmall();

const [{ dispatch }, { COMMANDS, DESCRIPTION }, { version }] = await Promise.all([
  import("./cli/framework/dispatch.ts"),
  import("./cli/commands.ts"),
  import("./runtime/version.ts"),
]);
process.exit(await dispatch(process.argv.slice(2), COMMANDS, { version, description: DESCRIPTION }));
