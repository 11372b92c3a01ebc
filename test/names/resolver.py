#!/usr/bin/env python3
"""A resolver that asks all the time and forgives nothing: no query is sent twice.

    resolver.py SECONDS SERVER... -- QUERY...

A query is NAME:TYPE=ANSWERS (answers joined by commas, none for an empty NOERROR). Asks each of them at each server in
turn, 2 ms apart, until standard input closes or SECONDS are over. Prints "asking" after the first round, at the end JSON:
{"asked": N, "right": N, "wrong": {TEXT: N}}. A query without an answer after 500 ms, or whose packet met a closed port
(nobody answered in the kernel), is wrong.
"""
import json
import select
import socket
import struct
import sys
import time

TYPES = {"A": 1, "PTR": 12, "MX": 15, "AAAA": 28}


def wire(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def name_at(message, at):
    labels = []
    while message[at]:
        if message[at] >= 0xC0:
            return ".".join(labels + [name_at(message, struct.unpack_from(">H", message, at)[0] & 0x3FFF)[0]]), at + 2
        labels.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels), at + 1


def answers(message, question):
    flags, questions, count = struct.unpack_from(">HHH", message, 2)
    if not flags & 0x8000 or flags & 0xF or questions != 1:
        return f"flags {flags:04x}, {questions} questions"
    if message[12 : 12 + len(question)] != question:
        return "another question"
    at = 12 + len(question)
    found = []
    for _ in range(count):
        _, at = name_at(message, at)
        kind, _, _, size = struct.unpack_from(">HHIH", message, at)
        at += 10
        if kind == 12:
            found.append(name_at(message, at)[0])
        else:
            found.append(socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, message[at : at + size]))
        at += size
    return ",".join(sorted(found))


def main():
    limit, rest = time.monotonic() + float(sys.argv[1]), sys.argv[2:]
    servers = rest[: rest.index("--")]
    queries = []
    for text in rest[rest.index("--") + 1 :]:
        key, _, expected = text.partition("=")
        name, _, kind = key.partition(":")
        queries.append((f"{name} {kind}", wire(name) + struct.pack(">HH", TYPES[kind], 1), expected))
    tally = {"asked": 0, "right": 0, "wrong": {}}
    serial = 0
    first = True
    while time.monotonic() < limit:
        for server in servers:
            for text, question, expected in queries:
                serial = (serial + 1) & 0xFFFF
                found = ask(server, serial, question)
                tally["asked"] += 1
                if found == expected:
                    tally["right"] += 1
                else:
                    key = f"{text} at {server}: {found}"
                    tally["wrong"][key] = tally["wrong"].get(key, 0) + 1
                time.sleep(0.002)
        if first:
            first = False
            print("asking", flush=True)
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    print(json.dumps(tally), flush=True)


def ask(server, serial, question):
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        try:
            # Connected: an answer from any other address is none, and a closed port is told.
            sock.connect((server, 53))
            sock.send(struct.pack(">HHHHHH", serial, 0x100, 1, 0, 0, 0) + question)
            while True:
                message = sock.recv(1500)
                if struct.unpack_from(">H", message)[0] == serial:
                    return answers(message, question)
        except OSError as error:
            return f"{type(error).__name__}"


main()
