/** Unix sockets that only their owner, and optionally a group, can open at any moment. */
import { chmodSync, chownSync, lstatSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import type { Server } from "node:net";
import { dirname, join } from "node:path";

/**
 * Makes `server` listen on the unix socket `path` with mode 0700, or 0770 with the group `group`. It replaces an existing
 * file by rename, so that a socket exists at every moment. Makes missing folders with mode 0700. Returns the inode of the
 * socket. Rejects with the file system's error and closes the server.
 *
 * bind(2) creates the socket with the mode that the umask leaves. Listening is asynchronous, so a changed umask would apply
 * to every file that the process creates meanwhile. The socket is therefore created in a folder that only the owner can
 * enter, gets its mode there, and is then renamed.
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
