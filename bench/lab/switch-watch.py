#!/usr/bin/env python3
"""Watches when a service address leads elsewhere: switch-watch.py VIP PORT ENDPOINT-PORT ADDRESS ADDRESS...

Listens on all addresses itself, connects to the service in a tight loop, and prints "ADDRESS MILLISECONDS" (since
the epoch) for the first connection that comes out at another address than the one before. Ends with standard input.
"""
import select
import socket
import struct
import sys
import time

vip, port, endpoint_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
listeners = []
for address in sys.argv[4:]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, endpoint_port))
    listener.listen(64)
    listener.setblocking(False)
    listeners.append((address, listener))
linger = struct.pack("ii", 1, 0)
last = None
count = 0
while True:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    try:
        client.connect((vip, port))
    except OSError as error:
        print("failed", error, flush=True)
        client.close()
        time.sleep(0.01)
        continue
    for address, listener in listeners:
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:
            continue
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        accepted.close()
        if address != last:
            print(address, "%.3f" % (time.time() * 1000), flush=True)
            last = address
    client.close()
    count += 1
    if count % 100 == 0:
        if select.select([sys.stdin], [], [], 0)[0]:
            break
        time.sleep(0.001)
