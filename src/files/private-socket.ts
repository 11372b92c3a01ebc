/** Unix sockets that only their owner, or also a group, can ever open. */
import { chmodSync, chownSync, lstatSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import type { Server } from "node:net";
import { dirname, join } from "node:path";

/**
 * Has `server` listen on the unix socket `path`, mode 0700, in place of whatever lies there; there is a socket under the
 * name at every moment. Missing folders are made with mode 0700. Gives the inode of the socket. Rejects with what the file
 * system says; the server is closed then.
 *
 * bind(2) creates the socket with the mode that the umask leaves, and listening is asynchronous: a umask changed meanwhile
 * would hold for every file that the process creates. So the socket is made in a folder that only the owner can enter, gets
 * its mode there, and only then its name. Members of the group `group` may open it, too: mode 0770.
 */
export async function listenPrivately(server: Server, path: string, group?: number): Promise<bigint> {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const folder = mkdtempSync(`${path}.`);
  try {
    const fresh = join(folder, "s");
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(fresh, () => {
        server.off("error", reject);
        resolve();
      });
    });
    if (group !== undefined) chownSync(fresh, process.geteuid?.() ?? 0, group);
    chmodSync(fresh, group === undefined ? 0o700 : 0o770);
    const { ino } = lstatSync(fresh, { bigint: true });
    renameSync(fresh, path);
    return ino;
  } catch (error) {
    server.close();
    throw error;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
