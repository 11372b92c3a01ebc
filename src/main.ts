import { keepHeapSmall } from "./cli/small-heap.ts";

if (process.argv[2] === "run") keepHeapSmall();

const [{ dispatch }, { version }] = await Promise.all([
  import("./cli/dispatch.ts"),
  import("./runtime/version.ts"),
]);

/** In the order of the help. Each is loaded when it is asked for. */
const commands = {
  run: async () => (await import("./cli/run.ts")).run,
  status: async () => (await import("./cli/status.ts")).status,
  cert: async () => (await import("./cli/cert.ts")).cert,
  doctor: async () => (await import("./cli/doctor.ts")).doctor,
  dump: async () => (await import("./cli/dump.ts")).dump,
  explain: async () => (await import("./cli/explain.ts")).explain,
  enrol: async () => (await import("./cli/enrol.ts")).enrol,
  unenrol: async () => (await import("./cli/enrol.ts")).unenrol,
  wait: async () => (await import("./cli/wait.ts")).wait,
  restart: async () => (await import("./cli/restart.ts")).restart,
  upgrade: async () => (await import("./cli/upgrade.ts")).upgrade,
  rollback: async () => (await import("./cli/rollback.ts")).rollback,
  history: async () => (await import("./cli/history.ts")).history,
  down: async () => (await import("./cli/down.ts")).down,
  install: async () => (await import("./cli/install.ts")).install,
  uninstall: async () => (await import("./cli/install.ts")).uninstall,
  join: async () => (await import("./cli/join.ts")).join,
  config: async () => (await import("./cli/config.ts")).config,
  demo: async () => (await import("./cli/demo.ts")).demo,
  version: async () => (await import("./cli/version.ts")).version,
  "demo-stage": async () => (await import("./cli/demo.ts")).demoStage,
  "demo-part": async () => (await import("./cli/demo.ts")).demoPart,
};

const code = await dispatch(process.argv.slice(2), commands, {
  version,
  description: "A service mesh that lives in the kernel",
});
process.exit(code);
