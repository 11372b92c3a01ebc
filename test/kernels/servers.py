#!/usr/bin/env python3
"""Servers that say who they are, like src/demo/upstream.ts: `servers.py NAME=ADDRESS:PORT ...`, IPv6 addresses in brackets.

One process for all: under emulation its start is most of the work.
"""
import socket
import sys
import threading


def serve(connection, name):
    with connection, connection.makefile("rb") as lines:
        try:
            for line in lines:
                if not line.startswith(b"GET "):
                    connection.sendall(name + b" " + line)
                    continue
                while lines.readline().strip():
                    pass
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s\n" % (len(name) + 1, name)
                )
                return
        except OSError:
            pass  # The client has reset it.


def accept(listener, name):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, name), daemon=True).start()


for argument in sys.argv[1:]:
    name, at = argument.split("=")
    address, port = at.rsplit(":", 1)
    family = socket.AF_INET6 if "[" in address else socket.AF_INET
    listener = socket.create_server((address.strip("[]"), int(port)), family=family, backlog=1024)
    threading.Thread(target=accept, args=(listener, name.encode()), daemon=True).start()
# As long as somebody holds the other end.
sys.stdin.read()
