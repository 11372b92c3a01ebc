"""Healthy traffic for bench/healthy.ts, both ends of it: healthy.py serve | healthy.py call SECONDS | healthy.py fault

Both ends know their protocol: the client names how many bytes it wants, the server answers that many. `call` prints one
line of JSON at its end: how many connections it made, and how many of them failed.
"""
import asyncio
import json
import random
import struct
import sys
import time

ENDPOINTS = ["127.2.%d.%d" % (service, n) for service in range(1, 10) for n in range(1, 4)] + ["127.2.0.9"]
PORT = 8080
INBOUND = ("127.2.0.9", 8090)
CALLERS = ["127.2.0.77", "127.2.0.78"]
counts = {"made": 0, "failed": 0, "bytes": 0}


async def answer(reader, writer):
    try:
        while True:
            size, wanted = struct.unpack("!II", await reader.readexactly(8))
            await reader.readexactly(size)
            writer.write(b"a" * wanted)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def serve():
    for address in ENDPOINTS[:-1]:
        await asyncio.start_server(answer, address, PORT, backlog=128)
    await asyncio.start_server(answer, *INBOUND, backlog=128)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def call(address, port, size=300, wanted=900, times=1, pause=0.0, source=None):
    counts["made"] += 1
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(address, port, local_addr=(source, 0) if source else None), 10)
        for i in range(times):
            if i:
                await asyncio.sleep(pause)
            writer.write(struct.pack("!II", size, wanted) + b"q" * size)
            await writer.drain()
            await reader.readexactly(wanted)
            counts["bytes"] += size + wanted
        writer.close()
        await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        counts["failed"] += 1
        print(f"{address}: {error!r}", file=sys.stderr, flush=True)


def vip(n):
    return "10.96.2.%d" % n


async def every(seconds, until, one):
    """Like many independent clients: exponential gaps."""
    running = set()
    while time.monotonic() < until:
        await asyncio.sleep(random.expovariate(1 / seconds))
        task = asyncio.create_task(one())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


async def calls(seconds):
    random.seed(7)
    until = time.monotonic() + seconds
    left = lambda: max(1, until - time.monotonic())
    size = lambda: int(random.paretovariate(1.2) * 200) % 100_000 + 1
    await asyncio.gather(
        every(0.15, until, lambda: call(vip(1), 80, size(), size())),
        every(0.4, until, lambda: call(vip(2), 80, size(), size(), times=3, pause=random.random())),
        # Connections of a pool, which live for minutes.
        every(12, until, lambda: call(vip(2), 80, 50, 200, times=int(min(90, left()) / 3), pause=3)),
        every(0.5, until, lambda: call(vip(3), 80, size(), size())),
        every(0.5, until, lambda: call(vip(4), 80, size(), size())),
        every(0.5, until, lambda: call(vip(5), 80, size(), size())),
        every(0.5, until, lambda: call(vip(6), 80, size(), size())),
        every(2, until, lambda: call(vip(7), 80, 100, 100, times=int(min(20, left())), pause=1)),
        every(15, until, lambda: call(vip(8), 80, 1000, 8_000_000)),
        every(60, until, lambda: call(vip(9), 80)),
        every(1, until, lambda: call(*INBOUND, size(), size(), source=random.choice(CALLERS))),
    )
    print(json.dumps(counts))


async def fault():
    """What no rule may miss: half of the endpoints of a service refuse."""
    for _ in range(20):
        await call(vip(10), 80)


mode = sys.argv[1]
asyncio.run(serve() if mode == "serve" else fault() if mode == "fault" else calls(float(sys.argv[2])))
