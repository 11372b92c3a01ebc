#!/usr/bin/env python3
"""Answers NAME to each line, over MPTCP where the client speaks it: mptcp-echo.py NAME ADDRESS PORT."""
import socket
import sys
import threading

IPPROTO_MPTCP = 262  # linux/in.h
name, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((address, port))
server.listen(128)
print("ready", flush=True)


def serve(sock):
    with sock:
        while sock.recv(4096):
            sock.sendall(name.encode() + b" \n")


while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
