import { keepHeapSmall } from "./cli/framework/small-heap.ts";

if (process.argv[2] === "run") keepHeapSmall();

const [{ dispatch }, { COMMANDS, DESCRIPTION }, { version }] = await Promise.all([
  import("./cli/framework/dispatch.ts"),
  import("./cli/commands.ts"),
  import("./runtime/version.ts"),
]);
process.exit(await dispatch(process.argv.slice(2), COMMANDS, { version, description: DESCRIPTION }));
