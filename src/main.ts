import { cert } from "./cli/cert.ts";
import { config } from "./cli/config.ts";
import { demo, demoPart, demoStage } from "./cli/demo.ts";
import { dispatch } from "./cli/dispatch.ts";
import { doctor } from "./cli/doctor.ts";
import { down } from "./cli/down.ts";
import { dump } from "./cli/dump.ts";
import { enrol, unenrol } from "./cli/enrol.ts";
import { explain } from "./cli/explain.ts";
import { history } from "./cli/history.ts";
import { install, uninstall } from "./cli/install.ts";
import { join } from "./cli/join.ts";
import { restart } from "./cli/restart.ts";
import { rollback } from "./cli/rollback.ts";
import { run } from "./cli/run.ts";
import { status } from "./cli/status.ts";
import { upgrade } from "./cli/upgrade.ts";
import { version } from "./cli/version.ts";
import { wait } from "./cli/wait.ts";
import { version as number } from "./runtime/version.ts";

const code = await dispatch(
  process.argv.slice(2),
  [
    run,
    status,
    cert,
    doctor,
    dump,
    explain,
    enrol,
    unenrol,
    wait,
    restart,
    upgrade,
    rollback,
    history,
    down,
    install,
    uninstall,
    join,
    config,
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
