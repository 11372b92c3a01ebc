"""Holds the listening sockets of a tunnel, as systemd does, and starts `kmesh tunnel` again whenever it has ended.
tunnel-holder.py NAMES COMMAND...: NAMES are listeners, joined by commas. Prints the pid of each tunnel that it starts."""
import ctypes, os, signal, socket, sys, time

ADDRESSES = {
    "outbound": (socket.AF_INET, "0.0.0.0", 15001),
    "hbone": (socket.AF_INET6, "::", 15008),
    "inbound": (socket.AF_INET, "127.0.0.1", 15006),
    "inbound6": (socket.AF_INET6, "::1", 15006),
}
names, command = sys.argv[1].split(","), sys.argv[2:]
listeners = []
for name in names:
    family, address, port = ADDRESSES[name]
    one = socket.socket(family)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if name == "inbound6":
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind((address, port))
    one.listen(4096)
    listeners.append(one)
numbers = [one.fileno() for one in listeners]
while True:
    child = os.fork()
    if child == 0:
        # It ends with its holder.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        # Above the numbers that they are to have.
        copies = [os.dup2(fd, 100 + i) for i, fd in enumerate(numbers)]
        for i, fd in enumerate(copies):
            os.dup2(fd, 3 + i, inheritable=True)
            os.close(fd)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=":".join(names))
        os.execv(command[0], command)
    print("tunnel", child, flush=True)
    os.waitpid(child, 0)
    time.sleep(0.2)
