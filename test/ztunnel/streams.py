#!/usr/bin/env python3
"""For tests: both ends of TCP connections that know nothing of meshes.

serve NAME ADDRESS:PORT      A server. The first line of a connection says what it does:
                               hello      answers "NAME hello" to each line
                               digest     reads to the end, then answers with what came: BYTES SHA256
                               give N     sends N bytes and ends
                               both N     sends N bytes while it reads to the end, then BYTES SHA256 of what came
                               early      answers "enough" and ends at once, reads nothing more, and closes a second later
                               reset      resets
ask ADDRESS PORT COMMAND     A client: sends the command (and as many bytes as `digest N`, `both N` and `early N` say), half-closes
                             and prints JSON: {"text": what came beside the bytes that were asked for, "bytes": the number of
                             those, "whole": whether they are right, "error"}
hold ADDRESS PORT COUNT N    COUNT connections with `give N` that are not read. Prints "ready" when each has bytes; at the end of
                             standard input reads all and prints the number of whole ones.
"""
import hashlib
import json
import socket
import struct
import sys
import threading
import time

BLOCK = bytes(range(256)) * 256


def pour(sock, size):
    """Sends `size` bytes of the pattern."""
    for _ in range(size // len(BLOCK)):
        sock.sendall(BLOCK)
    sock.sendall(BLOCK[: size % len(BLOCK)])


def pattern(size):
    """The digest of what `pour` sends."""
    digest = hashlib.sha256()
    for _ in range(size // len(BLOCK)):
        digest.update(BLOCK)
    digest.update(BLOCK[: size % len(BLOCK)])
    return digest.hexdigest()


def drain(read):
    """Reads to the end: the number of bytes, and their digest."""
    size, digest = 0, hashlib.sha256()
    while part := read(1 << 16):
        size += len(part)
        digest.update(part)
    return size, digest.hexdigest()


def answer(sock, name):
    stream = sock.makefile("rb")
    command = stream.readline().decode().split()
    kind = command[0] if command else ""
    if kind == "hello":
        sock.sendall(f"{name} hello\n".encode())
        for line in stream:
            sock.sendall(f"{name} {line.decode()}".encode())
    elif kind == "digest":
        size, digest = drain(stream.read1)
        sock.sendall(f"{size} {digest}\n".encode())
    elif kind == "give":
        pour(sock, int(command[1]))
    elif kind == "both":
        sender = threading.Thread(target=pour, args=(sock, int(command[1])))
        sender.start()
        size, digest = drain(stream.read1)
        sender.join()
        sock.sendall(f"{size} {digest}\n".encode())
    elif kind == "early":
        sock.sendall(b"enough\n")
        sock.shutdown(socket.SHUT_WR)
        time.sleep(1)
    elif kind == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def serve(name, at):
    address, _, port = at.rpartition(":")
    listener = socket.create_server((address, int(port)), backlog=128)
    print("ready", flush=True)

    def run(sock):
        try:
            answer(sock, name)
        except OSError:
            pass
        sock.close()

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=run, args=(sock,), daemon=True).start()


def ask(address, port, kind, size="0"):
    result = {"text": "", "bytes": 0, "whole": False, "error": ""}
    try:
        sock = socket.create_connection((address, int(port)), timeout=30)
        amount = int(size)
        sock.sendall((kind + (f" {size}" if kind in ("give", "both") else "") + "\n").encode())
        if kind in ("digest", "both", "early"):
            sender = threading.Thread(target=lambda: quietly(lambda: pour(sock, amount)), daemon=True)
            sender.start()
        stream = sock.makefile("rb")
        if kind in ("give", "both"):
            digest = hashlib.sha256()
            while result["bytes"] < amount and (part := stream.read1(min(1 << 16, amount - result["bytes"]))):
                result["bytes"] += len(part)
                digest.update(part)
            result["whole"] = digest.hexdigest() == pattern(amount)
        if kind in ("digest", "both"):
            sender.join()
        if kind != "early":
            quietly(lambda: sock.shutdown(socket.SHUT_WR))
        result["text"] = stream.read().decode().strip()
        if kind == "early":
            sender.join(20)
            result["error"] = "the writes go on" if sender.is_alive() else ""
        if kind in ("digest", "both"):
            result["text"] = "whole" if result["text"] == f"{amount} {pattern(amount)}" else result["text"]
    except OSError as error:
        result["error"] = type(error).__name__
    print(json.dumps(result), flush=True)


def quietly(act):
    try:
        act()
    except OSError:
        pass


def hold(address, port, count, size):
    held = []
    for _ in range(int(count)):
        sock = socket.create_connection((address, int(port)), timeout=30)
        # Or the window of this socket takes all of it.
        sock.sendall(f"give {size}\n".encode())
        held.append(sock)
    for sock in held:
        sock.recv(1, socket.MSG_PEEK)
    print("ready", flush=True)
    sys.stdin.read()
    wanted = (int(size), pattern(int(size)))
    print(sum(drain(sock.recv) == wanted for sock in held), flush=True)


{"serve": serve, "ask": ask, "hold": hold}[sys.argv[1]](*sys.argv[2:])
