"""The app of the machine that takes connections, and counts what it takes:

    machine-app.py PORT...

A request is two numbers of 32 bits (its own length, and the length of its answer) and other bytes; the answer begins with
"app ". The caller ends the connection. "settled N" on standard input is answered once no more than N connections are open:
a line of JSON with what it counted for each port and caller's address (Accepted in kernel-counts.ts)."""
import json, select, socket, struct, sys

class Connection:
    def __init__(self, socket_, remote, port):
        self.socket, self.key, self.bytes = socket_, (port, remote.removeprefix("::ffff:")), b""

    def hear(self):
        """False when the connection is over."""
        tally = tallies[self.key]
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            return False
        tally["received"] += len(data)
        self.bytes += data
        if len(self.bytes) >= 8:
            length, answer = struct.unpack("<II", self.bytes[:8])
            if len(self.bytes) >= length:
                self.bytes = self.bytes[length:]
                self.socket.sendall(b"app " + bytes(answer - 4))
                tally["sent"] += answer
        return True

    def close(self):
        tally = tallies[self.key]
        # tcpi_total_retrans of tcp_info (linux/tcp.h).
        tally["retransmits"] += struct.unpack_from("I", self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]
        tally["closed"] += 1
        self.socket.close()

def listen(port):
    one = socket.socket(socket.AF_INET6)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind(("::", port))
    one.listen(128)
    return one

listeners = {one.fileno(): one for one in map(listen, map(int, sys.argv[1:]))}
tallies, connections, waiting = {}, {}, None
poller = select.epoll()
for fd in (0, *listeners):
    poller.register(fd, select.EPOLLIN)
print("ready", flush=True)
while True:
    for fd, _ in poller.poll():
        if fd == 0:
            line = sys.stdin.readline()
            if not line:
                sys.exit()
            waiting = int(line.split()[1])
        elif fd in listeners:
            one, remote = listeners[fd].accept()
            connection = Connection(one, remote[0], listeners[fd].getsockname()[1])
            connections[one.fileno()] = connection
            names = ("opened", "closed", "received", "sent", "retransmits")
            tallies.setdefault(connection.key, dict.fromkeys(names, 0))["opened"] += 1
            poller.register(one.fileno(), select.EPOLLIN)
        elif not connections[fd].hear():
            poller.unregister(fd)
            connections.pop(fd).close()
    if waiting is not None and len(connections) <= waiting:
        print(json.dumps([{"port": port, "remote": remote, **tally} for (port, remote), tally in tallies.items()]), flush=True)
        waiting = None
