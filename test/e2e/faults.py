"""Apps at both ends of connections whose numbers are known, in one process: faults.py SCENE. Prints "done" at the end.

healthy    20 connections to 10.96.1.1:80, answered by 127.1.1.1:9001
reset      6 to 10.96.1.2:80, which 127.1.1.2:9002 takes, reads and resets
timeout    4 to 10.96.1.3:80, where nothing answers
silent     5 to 10.96.1.4:80, whose 127.1.1.4:9004 reads and closes without an answer
lossy      12 at once to 10.96.1.5:80, answered by 127.1.1.5:9005; the caller has packets dropped
full       5 to 10.96.1.6:80, of which 3 may be open at a time
lonely     12 to 10.96.1.7:80, answered by 127.1.1.7:9007
empty      3 to 10.96.1.8:80, which has no endpoint
mixed      66 to 10.96.1.9:80, answered by 127.1.2.1, 127.1.2.2 and 10.9.9.2, port 9009
sick       12 to 10.96.1.10:80, whose 127.1.3.1:9 is dead; 127.1.3.2:9010 answers when that is left out
outside    3 to 172.31.200.5:443, which is a service of the mesh without endpoints of its own
late       3 to 10.96.1.11:80, answered by 127.1.3.3:9011
far        the server of 10.9.9.2 alone, in a namespace of its own; prints "ready" and stays
callers    7 from 127.1.0.77 to 127.1.1.9:8090, which is this machine's own: 1,000 bytes to it, 500 back; the last 2 reset
"""
import socket
import struct
import sys
import threading
import time

RESET_AT_CLOSE = struct.pack("ii", 1, 0)


def read(sock, count):
    got = 0
    while got < count:
        data = sock.recv(count - got)
        if not data:
            return
        got += len(data)


def serve(address, port, size, answer, reset):
    listener = socket.create_server((address, port), backlog=64)

    def one(sock):
        read(sock, size)
        if answer:
            sock.sendall(b"a" * answer)
            sock.recv(1)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        sock.close()

    def loop():
        while True:
            sock, _ = listener.accept()
            thread = threading.Thread(target=one, args=(sock,), daemon=True)
            thread.start()
            threads.append(thread)

    threading.Thread(target=loop, daemon=True).start()


def call(address, port, pieces, answer, source=None, reset=False):
    sock = socket.socket()
    sock.settimeout(20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if source:
        sock.bind((source, 0))
    sock.connect((address, port))
    for _ in range(pieces):
        sock.sendall(b"r" * 500)
    try:
        read(sock, answer or 1)
    except ConnectionResetError:
        pass
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    sock.close()


threads = []
scene = sys.argv[1]
if scene == "healthy":
    serve("127.1.1.1", 9001, 1000, 500, False)
    for _ in range(20):
        call("10.96.1.1", 80, 2, 500)
if scene == "reset":
    serve("127.1.1.2", 9002, 1000, 0, True)
    for _ in range(6):
        call("10.96.1.2", 80, 2, 0)
if scene == "timeout":
    waiting = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("10.96.1.3", 80))
        waiting.append(sock)
    # The first SYN is sent again after a second.
    time.sleep(1.5)
    for sock in waiting:
        sock.close()
if scene == "silent":
    serve("127.1.1.4", 9004, 1000, 0, False)
    for _ in range(5):
        call("10.96.1.4", 80, 2, 0)
if scene == "lossy":
    serve("127.1.1.5", 9005, 10000, 500, False)
    calls = [threading.Thread(target=call, args=("10.96.1.5", 80, 20, 500)) for _ in range(12)]
    for each in calls:
        each.start()
    for each in calls:
        each.join()
if scene == "full":
    serve("127.1.1.6", 9006, 1000, 500, False)
    held = []
    for _ in range(5):
        held.append(socket.socket())
        refused = held[-1].connect_ex(("10.96.1.6", 80))
        if refused:
            held.pop()
    for sock in held:
        sock.close()
if scene == "lonely":
    serve("127.1.1.7", 9007, 1000, 500, False)
    for _ in range(12):
        call("10.96.1.7", 80, 2, 500)
if scene == "empty":
    for _ in range(3):
        socket.socket().connect_ex(("10.96.1.8", 80))
if scene == "mixed":
    for address in ["127.1.2.1", "127.1.2.2"]:
        serve(address, 9009, 1000, 500, False)
    for _ in range(66):
        call("10.96.1.9", 80, 2, 500)
if scene == "sick":
    serve("127.1.3.2", 9010, 1000, 500, False)
    for _ in range(12):
        try:
            call("10.96.1.10", 80, 2, 500)
        except ConnectionRefusedError:
            pass
if scene == "late":
    serve("127.1.3.3", 9011, 1000, 500, False)
    for _ in range(3):
        call("10.96.1.11", 80, 2, 500)
if scene == "outside":
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("172.31.200.5", 443))
        sock.close()
if scene == "far":
    serve("10.9.9.2", 9009, 1000, 500, False)
    print("ready", flush=True)
    threading.Event().wait()
if scene == "callers":
    serve("127.1.1.9", 8090, 1000, 500, False)
    for i in range(7):
        call("127.1.1.9", 8090, 2, 500, source="127.1.0.77", reset=i >= 5)
for each in threads:
    each.join(20)
print("done")
