#!/usr/bin/env python3
"""A connection that has ended while its socket stays open: ended.py WAY ADDRESS PORT OWN [mptcp]. OWN is the endpoint's
address and port, where this script is the server. Prints "ended", and closes the socket when a line comes."""
import ctypes
import select
import socket
import struct
import sys

way, address, port, own = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
IPPROTO_MPTCP = 262  # linux/in.h
AF_UNSPEC = struct.pack("HHI8x", 0, 0, 0)
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP if "mptcp" in sys.argv else 0)
peer = None
if way != "refused":
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((own.split(":")[0], int(own.split(":")[1])))
    server.listen()
try:
    sock.connect((address, port))
    assert way != "refused"
except ConnectionRefusedError:
    assert way == "refused"
if way != "refused":
    peer, _ = server.accept()
    server.close()
if way == "reset":
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    select.select([sock], [], [], 5)
elif way == "shutdown":
    sock.shutdown(socket.SHUT_RDWR)
    peer.recv(1)
    peer.close()
elif way == "unspecified":
    assert ctypes.CDLL(None).connect(sock.fileno(), AF_UNSPEC, len(AF_UNSPEC)) == 0
elif way == "half-closed":
    sock.shutdown(socket.SHUT_WR)
    peer.recv(1)
print("ended", flush=True)
sys.stdin.readline()
sock.close()
print("closed", flush=True)
sys.stdin.readline()
