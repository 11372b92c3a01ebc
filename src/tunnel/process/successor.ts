/**
 * Hands the listening sockets to the next tunnel process. They are the same sockets, so no connection in an accept queue is
 * lost, as it would be with SO_REUSEPORT.
 */
import { spawn } from "node:child_process";
import { type Listener, PREDECESSOR } from "./listeners.ts";

/** The line by which a successor reports that it accepts. */
export const READY_SIGNAL = "SIGUSR2";
/** Time limit of a successor's start, milliseconds. */
const PATIENCE = 20_000;

/**
 * Starts `command` with the listening sockets, as nobody's child, and waits until it accepts. Resolves with its pid; from
 * then on both accept. Rejects with an Error when it did not come up: it is ended then, and this process goes on alone.
 */
export async function startSuccessor(
  command: readonly string[],
  listeners: readonly Listener[],
  env: Readonly<Record<string, string | undefined>>,
  patience = PATIENCE,
): Promise<number> {
  const fds = listeners.map(({ fd, name }) => {
    if (fd === undefined) throw new Error(`the listening socket ${name} can't be handed on`);
    return fd;
  });
  const ready = Promise.withResolvers<void>();
  const onReady = () => ready.resolve();
  process.on(READY_SIGNAL, onReady);
  let pid = 0;
  const timer = setTimeout(
    () => ready.reject(new Error(`the next tunnel was not ready within ${patience} ms`)),
    patience,
  );
  try {
    pid = await startOrphan(command, fds, {
      ...env,
      LISTEN_FDS: String(fds.length),
      LISTEN_FDNAMES: listeners.map(({ name }) => name).join(":"),
      [PREDECESSOR]: String(process.pid),
    });
    const watch = setInterval(() => {
      if (!lives(pid)) ready.reject(new Error("the next tunnel ended before it was ready; its log says why"));
    }, 100);
    try {
      await ready.promise;
    } finally {
      clearInterval(watch);
    }
    return pid;
  } catch (error) {
    if (pid > 0 && lives(pid)) process.kill(pid, "SIGKILL");
    throw error;
  } finally {
    clearTimeout(timer);
    process.off(READY_SIGNAL, onReady);
  }
}

/** Starts it through a shell that ends at once, so that the service manager becomes its parent. */
function startOrphan(
  command: readonly string[],
  fds: readonly number[],
  env: Record<string, string | undefined>,
): Promise<number> {
  return new Promise((resolve, reject) => {
    const shell = spawn("/bin/sh", ["-c", '"$@" >&2 & echo $!', "sh", ...command], {
      stdio: ["ignore", "pipe", "inherit", ...fds],
      env,
    });
    let text = "";
    shell.stdout?.on("data", (chunk) => {
      text += chunk;
    });
    shell.once("error", reject);
    shell.once("close", () => {
      const pid = Number(text.trim());
      if (Number.isInteger(pid) && pid > 0) resolve(pid);
      else reject(new Error("the next tunnel could not be started"));
    });
  });
}

/** Whether a process with this pid exists. */
export function lives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
