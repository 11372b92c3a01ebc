#!/usr/bin/env python3
"""A name server that is not signed, by UDP and TCP.

    name-server.py ADDRESS [NAME=ADDRESS,ADDRESS...]

Answers A queries for the names, everything else with NXDOMAIN. Prints "ready"; ends with its standard input.
"""
import os
import socket
import struct
import sys
import threading


def question_of(message):
    at, labels = 12, []
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode().lower())
        at += 1 + message[at]
    return ".".join(labels), message[12 : at + 5], struct.unpack_from(">H", message, at + 1)[0]


def answer(message, known):
    name, question, kind = question_of(message)
    addresses = known.get(name)
    rcode = 3 if addresses is None else 0
    records = [socket.inet_aton(one) for one in addresses or []] if kind == 1 else []
    head = message[:2] + struct.pack(">HHHHH", 0x8580 | rcode, 1, len(records), 0, 0)
    return head + question + b"".join(struct.pack(">HHHIH", 0xC00C, 1, 1, 30, 4) + one for one in records)


def serve(connection, known):
    with connection, connection.makefile("rb") as source:
        while size := source.read(2):
            reply = answer(source.read(struct.unpack(">H", size)[0]), known)
            connection.sendall(struct.pack(">H", len(reply)) + reply)


def serve_datagrams(server, known):
    while True:
        message, client = server.recvfrom(1500)
        server.sendto(answer(message, known), client)


def main():
    known = {name: text.split(",") for name, text in (one.split("=") for one in sys.argv[2:])}
    listener = socket.create_server((sys.argv[1], 53), reuse_port=True)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((sys.argv[1], 53))
    threading.Thread(target=serve_datagrams, args=(datagrams, known), daemon=True).start()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], known), daemon=True).start()


main()
