"""A link between two network namespaces on which each packet takes its time: slow-link.py NETNS HERE THERE. Prints "ready".

HERE is an address of the own namespace, THERE one of NETNS, both without a prefix length. A packet takes 0.2 ms, and 8 ms
from SIGUSR1 on.
"""
import collections
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
TUN_WITHOUT_HEADER = 0x1001
delay = 0.0002


def slow(*_):
    global delay
    delay = 0.008


def device(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), TUN_WITHOUT_HEADER))
    return fd


netns, here, there = sys.argv[1:]
signal.signal(signal.SIGUSR1, slow)
ends = [device("slow0"), device("slow1")]
subprocess.run(["ip", "link", "set", "slow1", "netns", netns], check=True)
for where, name, own, peer in [([], "slow0", here, there), (["-n", netns], "slow1", there, here)]:
    subprocess.run(["ip", *where, "addr", "add", own, "peer", peer, "dev", name], check=True)
    subprocess.run(["ip", *where, "link", "set", name, "up"], check=True)
print("ready", flush=True)
waiting = collections.deque()
while True:
    rest = max(0, waiting[0][0] - time.monotonic()) if waiting else None
    readable, _, _ = select.select(ends, [], [], rest)
    for fd in readable:
        waiting.append((time.monotonic() + delay, ends[1 - ends.index(fd)], os.read(fd, 65536)))
    while waiting and waiting[0][0] <= time.monotonic():
        _, to, packet = waiting.popleft()
        os.write(to, packet)
