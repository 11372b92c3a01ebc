/** The commands, in the order of help and manual. Each is loaded when it is asked for. */
import type { Commands } from "./framework/command.ts";

export const DESCRIPTION = "A service mesh that lives in the kernel";

export const COMMANDS: Commands = {
  run: async () => (await import("./commands/run.ts")).run,
  status: async () => (await import("./commands/status.ts")).status,
  cert: async () => (await import("./commands/cert.ts")).cert,
  doctor: async () => (await import("./commands/doctor.ts")).doctor,
  dump: async () => (await import("./commands/dump.ts")).dump,
  explain: async () => (await import("./commands/explain.ts")).explain,
  topology: async () => (await import("./commands/topology.ts")).topology,
  top: async () => (await import("./commands/top.ts")).top,
  log: async () => (await import("./commands/log.ts")).log,
  resolve: async () => (await import("./commands/resolve.ts")).resolve,
  enrol: async () => (await import("./commands/enrol.ts")).enrol,
  unenrol: async () => (await import("./commands/enrol.ts")).unenrol,
  wait: async () => (await import("./commands/wait.ts")).wait,
  restart: async () => (await import("./commands/restart.ts")).restart,
  upgrade: async () => (await import("./commands/upgrade.ts")).upgrade,
  rollback: async () => (await import("./commands/rollback.ts")).rollback,
  history: async () => (await import("./commands/history.ts")).history,
  "log-level": async () => (await import("./commands/log-level.ts")).logLevel,
  down: async () => (await import("./commands/down.ts")).down,
  install: async () => (await import("./commands/install.ts")).install,
  uninstall: async () => (await import("./commands/install.ts")).uninstall,
  join: async () => (await import("./commands/join.ts")).join,
  config: async () => (await import("./commands/config.ts")).config,
  demo: async () => (await import("./commands/demo.ts")).demo,
  "bug-report": async () => (await import("./commands/bug-report.ts")).bugReport,
  completion: async () => (await import("./commands/completion.ts")).completion,
  version: async () => (await import("./commands/version.ts")).version,
  "complete-words": async () => (await import("./commands/completion.ts")).completeWords,
  documents: async () => (await import("./commands/documents.ts")).documents,
  "demo-stage": async () => (await import("./commands/demo.ts")).demoStage,
  "demo-part": async () => (await import("./commands/demo.ts")).demoPart,
};
