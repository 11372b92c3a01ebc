"""The apps of a small shop, for pictures of its map: pictures.py serve ADDRESS:PORT..., the same with mutual TLS as
pictures.py serve-tls FOLDER ADDRESS:PORT... (key.pem, cert.pem and ca.pem are in it), or pictures.py call FLOW...

A FLOW is TO,RATE,SENT,ANSWER,SECONDS[,FROM]: connections to ADDRESS:PORT from an address, RATE a second in the mean (it rises
and falls), each sends SENT bytes, gets ANSWER bytes and stays open for SECONDS. Both run until they are killed.
"""
import asyncio
import math
import random
import ssl
import sys
import time


async def serve(reader, writer):
    try:
        size, answer, seconds = (float(word) for word in (await reader.readline()).split())
        await reader.readexactly(int(size))
        writer.write(b"a" * int(answer))
        await writer.drain()
        await asyncio.sleep(seconds)
    except (OSError, asyncio.IncompleteReadError, ValueError):
        pass
    finally:
        writer.close()


async def connect(host, port, sent, answer, seconds, source):
    # A FIN at the end, whatever the other side does.
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(host, port, local_addr=(source, 0) if source else None), 5
        )
    except (OSError, asyncio.TimeoutError):
        return
    try:
        writer.write(f"{sent} {answer} {seconds}\n".encode() + b"r" * sent)
        await reader.read(-1)
    except OSError:
        pass
    finally:
        writer.close()


async def flow(text):
    to, rate, sent, answer, seconds, *source = text.split(",")
    host, port = to.rsplit(":", 1)
    began = time.monotonic()
    running = set()
    while True:
        wave = 1 + 0.35 * math.sin((time.monotonic() - began) / 40) + 0.1 * math.sin(time.monotonic() / 7)
        await asyncio.sleep(random.expovariate(float(rate) * wave))
        task = asyncio.create_task(connect(host, int(port), int(sent), int(answer), float(seconds), *(source or [""])))
        running.add(task)
        task.add_done_callback(running.discard)


def mutual_tls(folder):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{folder}/ca.pem")
    context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def main():
    what, *rest = sys.argv[1:]
    if what == "call":
        await asyncio.gather(*(flow(text) for text in rest))
    tls = mutual_tls(rest.pop(0)) if what == "serve-tls" else None
    servers = [await asyncio.start_server(serve, *text.rsplit(":", 1), ssl=tls) for text in rest]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


asyncio.run(main())
