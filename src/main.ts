import { demo, demoPart, demoStage } from "./cli/demo.ts";
import { dispatch } from "./cli/dispatch.ts";
import { down } from "./cli/down.ts";
import { dump } from "./cli/dump.ts";
import { explain } from "./cli/explain.ts";
import { history } from "./cli/history.ts";
import { install, uninstall } from "./cli/install.ts";
import { restart } from "./cli/restart.ts";
import { run } from "./cli/run.ts";
import { status } from "./cli/status.ts";
import { version } from "./cli/version.ts";
import { version as number } from "./runtime/version.ts";

const code = await dispatch(
  process.argv.slice(2),
  [
    run,
    status,
    dump,
    explain,
    restart,
    history,
    down,
    install,
    uninstall,
    demo,
    version,
    demoStage,
    demoPart,
  ],
  {
    version: number,
    description: "A service mesh that lives in the kernel",
  },
);
process.exit(code);
