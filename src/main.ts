import { keepHeapSmall } from "./cli/framework/small-heap.ts";

if (process.argv[2] === "run") keepHeapSmall();

const [{ dispatch }, { version }] = await Promise.all([
  import("./cli/framework/dispatch.ts"),
  import("./runtime/version.ts"),
]);

/** In the order of the help. Each is loaded when it is asked for. */
const commands = {
  run: async () => (await import("./cli/commands/run.ts")).run,
  status: async () => (await import("./cli/commands/status.ts")).status,
  cert: async () => (await import("./cli/commands/cert.ts")).cert,
  doctor: async () => (await import("./cli/commands/doctor.ts")).doctor,
  dump: async () => (await import("./cli/commands/dump.ts")).dump,
  explain: async () => (await import("./cli/commands/explain.ts")).explain,
  enrol: async () => (await import("./cli/commands/enrol.ts")).enrol,
  unenrol: async () => (await import("./cli/commands/enrol.ts")).unenrol,
  wait: async () => (await import("./cli/commands/wait.ts")).wait,
  restart: async () => (await import("./cli/commands/restart.ts")).restart,
  upgrade: async () => (await import("./cli/commands/upgrade.ts")).upgrade,
  rollback: async () => (await import("./cli/commands/rollback.ts")).rollback,
  history: async () => (await import("./cli/commands/history.ts")).history,
  down: async () => (await import("./cli/commands/down.ts")).down,
  install: async () => (await import("./cli/commands/install.ts")).install,
  uninstall: async () => (await import("./cli/commands/install.ts")).uninstall,
  join: async () => (await import("./cli/commands/join.ts")).join,
  config: async () => (await import("./cli/commands/config.ts")).config,
  demo: async () => (await import("./cli/commands/demo.ts")).demo,
  version: async () => (await import("./cli/commands/version.ts")).version,
  "demo-stage": async () => (await import("./cli/commands/demo.ts")).demoStage,
  "demo-part": async () => (await import("./cli/commands/demo.ts")).demoPart,
};

const code = await dispatch(process.argv.slice(2), commands, {
  version,
  description: "A service mesh that lives in the kernel",
});
process.exit(code);
