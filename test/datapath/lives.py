#!/usr/bin/env python3
"""One way in which a connection may live: lives.py WAY ADDRESS PORT. Prints "alive" once it is in the counts, goes on
when a line comes, prints "over" when it should be out of them, and ends when another line comes."""
import os
import signal
import socket
import struct
import sys

way, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
AF_UNSPEC = struct.pack("HHI8x", 0, 0, 0)


def pause(word):
    print(word, flush=True)
    sys.stdin.readline()


def tcp(blocking=True):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(blocking)
    return sock


def connect(sock):
    try:
        sock.connect((address, port))
    except OSError as error:
        return error
    return None


def disconnect(sock):
    import ctypes

    if ctypes.CDLL(None).connect(sock.fileno(), AF_UNSPEC, len(AF_UNSPEC)) != 0:
        raise OSError("AF_UNSPEC")


sock = tcp(way not in ("nonblocking", "syn-sent"))
if way == "fastopen":
    try:
        sock.sendto(b"hello\n", socket.MSG_FASTOPEN, (address, port))
    except BlockingIOError:
        pass
else:
    error = connect(sock)
    if way == "refused-again":
        assert error is not None
        assert connect(sock) is not None
if way == "forked":
    child = os.fork()
    if child == 0:
        sock.close()
        os._exit(0)
    os.waitpid(child, 0)
pause("alive")
if way == "reset":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
if way == "elsewhere":
    disconnect(sock)
    sock.connect(("127.0.0.1", int(sys.argv[4])))
elif way == "killed":
    if os.fork() == 0:
        print("over", flush=True)
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    signal.pause()
else:
    sock.close()
pause("over")
