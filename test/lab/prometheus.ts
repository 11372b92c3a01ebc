/** Debian's Prometheus and promtool, unpacked beside the other caches and never installed. */
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { output } from "./process.ts";

const CACHE = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "kmesh/prometheus");

/** Gives their paths. Rejects when the package can't be had. */
export async function prometheus(): Promise<{ server: string; promtool: string }> {
  const server = join(CACHE, "usr/bin/prometheus");
  if (!existsSync(server)) {
    mkdirSync(join(CACHE, ".."), { recursive: true });
    const work = mkdtempSync(`${CACHE}-`);
    try {
      const script = `cd ${work} && apt-get -qq -o APT::Sandbox::User=root download prometheus && dpkg -x ./*.deb root`;
      await output(["/bin/bash", "-c", script]);
      rmSync(CACHE, { recursive: true, force: true });
      renameSync(join(work, "root"), CACHE);
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
  }
  return { server, promtool: join(CACHE, "usr/bin/promtool") };
}
