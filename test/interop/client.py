#!/usr/bin/env python3
"""An app that knows nothing of meshes: makes TCP connections as the JSON on the command line says, prints JSON.

{"mode": "count", "address": A, "port": P, "count": N}  N connections one after the other, one line each
{"mode": "storm", ...}                                  the same without an end, until standard input closes
{"mode": "hold", ...}                                   N connections that stay and pass a line every 20 ms, until then
{"mode": "asked"}                                       "count" for each line of standard input, which is such a JSON

Optional: "mapped" (an IPv6 socket, the IPv4 address v4-mapped), "keep" (count: leave them open until standard
input closes, print first), "v6only", "source" (bind to this address first), "source_port" (and to this port), "timeout" (5 s), "threads" and "pace" (storm: how many, and
the seconds that each rests between two connections), "mptcp" (IPPROTO_MPTCP sockets).
"""
import errno
import json
import select
import socket
import sys
import threading
import time

IPPROTO_MPTCP = 262  # linux/in.h

lock = threading.Lock()
over = threading.Event()


def take(text):
    global spec, target, v6, result
    spec = json.loads(text)
    target = spec.get("address", "")
    v6 = ":" in target or spec.get("mapped")
    if spec.get("mapped"):
        target = "::ffff:" + target
    result = {"made": 0, "by": {}, "errors": {}, "peers": {}, "cut": 0, "answers": 0}


take(sys.argv[1])


def count(kind, key):
    with lock:
        result[kind][key] = result[kind].get(key, 0) + 1


def dial():
    protocol = IPPROTO_MPTCP if spec.get("mptcp") else 0
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM, protocol)
    try:
        sock.settimeout(spec.get("timeout", 5))
        if v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if spec.get("v6only") else 0)
        if "source" in spec:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((spec["source"], spec.get("source_port", 0)))
        sock.connect((target, spec["port"]))
        return sock
    except OSError as error:
        sock.close()
        name = errno.errorcode.get(error.errno, type(error).__name__) if error.errno else type(error).__name__
        count("errors", name)
        return None


def ask(sock, text):
    sock.sendall(text + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        part = sock.recv(4096)
        if not part:
            raise ConnectionError("closed")
        answer += part
    return answer.decode().split(" ")[0]


def once():
    sock = dial()
    if sock is None:
        return None
    try:
        who = ask(sock, b"hello")
        with lock:
            result["made"] += 1
        count("by", who)
        count("peers", "%s %d" % sock.getpeername()[:2])
        return sock
    except OSError as error:
        count("errors", "after connect: " + str(error))
        sock.close()
        return None


def storm():
    while not over.is_set():
        sock = once()
        if sock is not None:
            sock.close()
            time.sleep(spec.get("pace", 0))
        elif spec.get("pause"):
            time.sleep(spec["pause"])


def wait_for_end():
    sys.stdin.read()
    over.set()


def count_connections():
    kept = []
    for _ in range(spec.get("count", 1)):
        sock = once()
        if sock is not None:
            kept.append(sock) if spec.get("keep") else sock.close()
    print(json.dumps(result), flush=True)
    if spec.get("keep"):
        wait_for_end()


mode = spec["mode"]
if mode == "count":
    count_connections()
elif mode == "asked":
    for line in sys.stdin:
        take(line)
        count_connections()
elif mode == "storm":
    threads = [threading.Thread(target=storm) for _ in range(spec.get("threads", 2))]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    wait_for_end()
    for thread in threads:
        thread.join()
    print(json.dumps(result), flush=True)
elif mode == "hold":
    held = [sock for sock in (once() for _ in range(spec.get("count", 1))) if sock is not None]
    print("started", flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        for sock in list(held):
            try:
                ask(sock, b"beat")
                result["answers"] += 1
            except OSError as error:
                held.remove(sock)
                result["cut"] += 1
                count("errors", "held: " + str(error))
    print(json.dumps(result), flush=True)
