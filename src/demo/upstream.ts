/** A server that answers each line with its name and the line, and an HTTP request with its name, so that curl works. */
import { createServer, type Server, type Socket } from "node:net";

/** Listens on `address`:`port`. Rejects with the error of listen. */
export function startUpstream(name: string, address: string, port: number): Promise<Server> {
  const server = createServer((socket) => {
    socket.setNoDelay(true);
    // Ignore clients that reset.
    socket.on("error", () => socket.destroy());
    eachLine(socket, (line) => answer(socket, name, line));
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, address, 1024, () => resolve(server));
  });
}

function answer(socket: Socket, name: string, line: string): void {
  if (!line.startsWith("GET ")) {
    socket.write(`${name} ${line}\n`);
    return;
  }
  const body = `${name}\n`;
  socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`);
}

/** Calls `take` for each complete line, without its line end. */
export function eachLine(socket: NodeJS.ReadableStream, take: (line: string) => void): void {
  let rest = "";
  socket.setEncoding("utf8");
  socket.on("data", (part: string) => {
    const lines = (rest + part).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) take(line.replace(/\r$/, ""));
  });
}
