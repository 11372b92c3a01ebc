/**
 * Servers that say who they are: `bun upstream.ts NAME=ADDRESS:PORT ...`, IPv6 addresses in brackets.
 * A line is answered with the name and the line, an HTTP request with the name. Prints "ready" when all listen.
 */
import { createServer } from "node:net";

const servers = process.argv.slice(2).map((argument) => {
  const [, name = "", address = "", port = ""] = /^(.*?)=\[?(.*?)\]?:(\d+)$/.exec(argument) ?? [];
  return { name, address, port: Number(port) };
});
let waiting = servers.length;
for (const { name, address, port } of servers) {
  const server = createServer((socket) => {
    let rest = "";
    socket.setNoDelay(true);
    socket.setEncoding("utf8");
    socket.on("error", () => socket.destroy());
    socket.on("data", (text: string) => {
      rest += text;
      if (/^(GET|HEAD) /.test(rest)) {
        if (!rest.includes("\r\n\r\n")) return;
        socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${name.length}\r\nconnection: close\r\n\r\n${name}`);
        return;
      }
      const lines = rest.split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) socket.write(`${name} ${line}\n`);
    });
  });
  server.listen({ host: address, port, backlog: 1024, ipv6Only: address.includes(":") }, () => {
    waiting -= 1;
    if (waiting === 0) console.log("ready");
  });
}
