#!/usr/bin/env python3
"""One way in which a connection may go, both ends in this process: flows.py WAY FRONTEND PORT LISTEN LISTEN-PORT. Prints
what the apps saw as JSON: payload bytes that the client sent and received, and those that count at the server's end."""
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import threading
import time

way, frontend, port, address, listen_port = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
AF_UNSPEC = struct.pack("HHI8x", 0, 0, 0)


def listen(backlog=64, buffer=0):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.bind((address, listen_port))
    sock.listen(backlog)
    return sock


def pair(buffer=0):
    listener = listen(buffer=buffer)
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    client.connect((frontend, port))
    server, _ = listener.accept()
    listener.close()
    return client, server


def read(sock, count):
    got = 0
    while got < count:
        data = sock.recv(min(65536, count - got))
        if not data:
            break
        got += len(data)
    return got


def drain(sock):
    got = 0
    try:
        while data := sock.recv(65536):
            got += len(data)
    except OSError:
        pass
    return got


def send_all(sock, count):
    thread = threading.Thread(target=lambda: sock.sendall(b"x" * count))
    thread.start()
    return thread


def fill(sock):
    sock.setblocking(False)
    sent = 0
    while True:
        try:
            sent += sock.send(b"z" * 3000)
        except BlockingIOError:
            return sent


def pause(seconds=0.05):
    time.sleep(seconds)


def normal():
    client, server = pair()
    thread = send_all(client, 100_003)
    read(server, 100_003)
    thread.join()
    thread = send_all(server, 50_021)
    read(client, 50_021)
    thread.join()
    client.close()
    assert server.recv(1) == b""
    server.close()
    return 100_003, 50_021


def server_first():
    client, server = pair()
    client.sendall(b"q" * 777)
    read(server, 777)
    server.sendall(b"r" * 888)
    server.close()
    got = drain(client)
    client.close()
    return 777, got


def pending():
    """Closed with unsent data: it is delivered all the same."""
    client, server = pair(4096)
    sent = fill(client)
    client.close()
    got = drain(server)
    server.close()
    assert got == sent, (got, sent)
    return sent, 0


def pending_reset():
    client, server = pair(4096)
    fill(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    pause(0.3)
    client.close()
    pause()
    got = drain(server)
    server.close()
    return got, 0


def unread():
    """The kernel received all of it, the app a part."""
    client, server = pair()
    server.sendall(b"y" * 50_000)
    pause()
    read(client, 10_000)
    client.close()
    pause()
    server.close()
    return 0, 50_000


def reset_by_peer():
    client, server = pair()
    client.sendall(b"q" * 1000)
    read(server, 1000)
    server.sendall(b"w" * 500)
    read(client, 500)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    server.close()
    pause()
    client.close()
    return 1000, 500


def reset_read():
    client, server = pair()
    client.sendall(b"q" * 1000)
    read(server, 1000)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    server.close()
    pause()
    try:
        client.recv(1)
    except OSError:
        pass
    client.close()
    return 1000, 0


def half_close():
    client, server = pair()
    client.sendall(b"q" * 1234)
    client.shutdown(socket.SHUT_WR)
    drain(server)
    server.sendall(b"r" * 4321)
    server.close()
    got = drain(client)
    client.close()
    return 1234, got


def forked():
    client, server = pair()
    client.sendall(b"q" * 100)
    child = os.fork()
    if child == 0:
        client.sendall(b"q" * 200)
        os._exit(0)
    os.waitpid(child, 0)
    client.sendall(b"q" * 300)
    client.close()
    assert drain(server) == 600
    server.close()
    return 600, 0


def killed():
    listener = listen()
    child = os.fork()
    if child == 0:
        client = socket.socket()
        client.connect((frontend, port))
        while True:
            client.send(b"k" * 1000)
    server, _ = listener.accept()
    listener.close()
    got = read(server, 3_000_000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    got += drain(server)
    server.close()
    return got, 0


def fail(blocking):
    client = socket.socket()
    client.setblocking(blocking)
    try:
        client.connect((frontend, port))
    except OSError:
        pass
    return client


def refused():
    fail(True).close()
    return 0, 0


def refused_later():
    client = fail(False)
    pause()
    client.close()
    return 0, 0


def refused_and_read():
    """As most event loops do: the error is asked for, and gone then."""
    client = fail(False)
    pause()
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    client.close()
    return 0, 0


def refused_again():
    client = fail(True)
    try:
        client.connect((frontend, port))
    except OSError:
        pass
    client.close()
    return 0, 0


def timed_out():
    """The kernel gives up: one SYN and one retry, as the test has set it."""
    client = socket.socket()
    try:
        client.connect((frontend, port))
    except OSError:
        pass
    client.close()
    return 0, 0


def gave_up():
    client = socket.socket()
    client.settimeout(1.5)
    try:
        client.connect((frontend, port))
    except OSError:
        pass
    client.close()
    return 0, 0


def changed_mind():
    client = fail(False)
    pause()
    client.close()
    return 0, 0


def elsewhere():
    """AF_UNSPEC: what the first connection sent is lost, the second one counts."""
    client, server = pair()
    client.sendall(b"q" * 5000)
    read(server, 5000)
    assert ctypes.CDLL(None).connect(client.fileno(), AF_UNSPEC, len(AF_UNSPEC)) == 0
    listener = listen()
    client.connect((frontend, port))
    again, _ = listener.accept()
    client.sendall(b"Q" * 40)
    read(again, 40)
    client.close()
    pause()
    again.close()
    server.close()
    listener.close()
    return 40, 0


def again_and_again():
    """A few sockets connect by turns to two frontends that refuse: FRONTEND and the one behind it, for a second."""
    head, last = frontend.rsplit(".", 1)
    places = [(frontend, port), (f"{head}.{int(last) + 1}", port)]
    socks = [socket.socket() for _ in range(4)]
    made = [0, 0]
    end = time.monotonic() + 1
    while time.monotonic() < end:
        for turn in range(200):
            try:
                socks[turn // 2 % len(socks)].connect(places[turn % 2])
            except ConnectionRefusedError:
                made[turn % 2] += 1
    for sock in socks:
        sock.close()
    return made[0], made[1]


def many():
    """Known random amounts over 300 connections, a third reset, a third shut down first."""
    import random

    random.seed(7)
    listener = listen()
    total_out = total_in = 0
    for number in range(300):
        client = socket.socket()
        client.connect((frontend, port))
        server, _ = listener.accept()
        out, back = random.randrange(60_000), random.randrange(60_000)
        thread = send_all(client, out)
        read(server, out)
        thread.join()
        thread = send_all(server, back)
        assert read(client, back) == back
        thread.join()
        total_out += out
        total_in += back
        if number % 3 == 0:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            server.close()
        elif number % 3 == 1:
            client.shutdown(socket.SHUT_WR)
        client.close()
        server.close()
    return total_out, total_in


def lossy():
    """The test has packets dropped: how often the kernel sent again is what TCP_INFO says."""
    client, server = pair()
    thread = send_all(client, 1_000_000)
    assert read(server, 1_000_000) == 1_000_000
    thread.join()
    server.sendall(b"k" * 1000)
    read(client, 1000)
    pause(0.5)
    (total_retrans,) = struct.unpack_from("I", client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)
    client.close()
    pause(0.5)
    server.close()
    return 1_000_000, 1000, total_retrans


def alive():
    """Stays open until a line comes."""
    client, server = pair()
    client.sendall(b"a" * 7000)
    read(server, 7000)
    server.sendall(b"b" * 3000)
    read(client, 3000)
    pause()
    print("alive", flush=True)
    sys.stdin.readline()
    client.close()
    server.close()
    return 7000, 3000


def unaccepted():
    """Three connections that wait for accept() until a line comes, and then for ever."""
    listener = listen()
    clients = [socket.create_connection((frontend, port)) for _ in range(3)]
    for client in clients:
        client.sendall(b"u" * 100)
    pause()
    print("waiting", flush=True)
    sys.stdin.readline()
    listener.close()
    pause()
    for client in clients:
        client.close()
    return 0, 0


sent, received, *more = globals()[way]()
print(json.dumps({"sent": sent, "received": received, **({"retransmits": more[0]} if more else {})}))
