/** The commands, in the order of help and manual. Each is loaded when it is asked for. */
import type { Commands } from "./framework/command.ts";

export const DESCRIPTION = "A service mesh that lives in the kernel";

export const COMMANDS: Commands = {
  run: async () => (await import("./commands/run.ts")).run,
  status: async () => (await import("./commands/inspect/status.ts")).status,
  cert: async () => (await import("./commands/operate/cert.ts")).cert,
  doctor: async () => (await import("./commands/inspect/doctor.ts")).doctor,
  dump: async () => (await import("./commands/inspect/dump.ts")).dump,
  explain: async () => (await import("./commands/inspect/explain.ts")).explain,
  topology: async () => (await import("./commands/inspect/topology.ts")).topology,
  top: async () => (await import("./commands/inspect/top.ts")).top,
  log: async () => (await import("./commands/inspect/log.ts")).log,
  resolve: async () => (await import("./commands/inspect/resolve.ts")).resolve,
  tunnel: async () => (await import("./commands/tunnel.ts")).tunnel,
  enrol: async () => (await import("./commands/operate/enrol.ts")).enrol,
  unenrol: async () => (await import("./commands/operate/enrol.ts")).unenrol,
  wait: async () => (await import("./commands/operate/wait.ts")).wait,
  restart: async () => (await import("./commands/operate/restart.ts")).restart,
  upgrade: async () => (await import("./commands/operate/upgrade.ts")).upgrade,
  rollback: async () => (await import("./commands/operate/rollback.ts")).rollback,
  history: async () => (await import("./commands/inspect/history.ts")).history,
  "log-level": async () => (await import("./commands/operate/log-level.ts")).logLevel,
  down: async () => (await import("./commands/operate/down.ts")).down,
  install: async () => (await import("./commands/operate/install.ts")).install,
  uninstall: async () => (await import("./commands/operate/install.ts")).uninstall,
  join: async () => (await import("./commands/operate/join.ts")).join,
  config: async () => (await import("./commands/operate/config.ts")).config,
  demo: async () => (await import("./commands/demo.ts")).demo,
  "bug-report": async () => (await import("./commands/inspect/bug-report.ts")).bugReport,
  completion: async () => (await import("./commands/completion.ts")).completion,
  version: async () => (await import("./commands/version.ts")).version,
  "complete-words": async () => (await import("./commands/completion.ts")).completeWords,
  documents: async () => (await import("./commands/documents.ts")).documents,
  "demo-stage": async () => (await import("./commands/demo.ts")).demoStage,
  "demo-part": async () => (await import("./commands/demo.ts")).demoPart,
};
