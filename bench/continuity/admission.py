"""Connects to the machine from each source address to each port in turn, and writes each outcome into a ledger:

    admission.py LEDGER SOURCES MACHINE PORTS      (lists joined by commas; MACHINE: its IPv4 and its IPv6 address)

An entry has 24 bytes: when connect() began and ended (CLOCK_MONOTONIC, ns), the indexes of source and port, an errno (0: the
app answered). Takes "go", "pause" and "end" from standard input and answers each with a line."""
import errno, select, socket, struct, sys, time

BETWEEN = 0.002
LINGER = struct.pack("ii", 1, 0)

def attempt(source, machine, port):
    one = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET)
    one.settimeout(5)
    # A reset at the end: no port stays in TIME_WAIT, where a later SYN would get an ACK instead of a refusal.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    try:
        one.bind((source, 0))
        one.connect((machine, port))
        return 0 if one.recv(200).startswith(b"app ") else errno.EPROTO
    except TimeoutError:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno
    finally:
        one.close()

path, sources, machine, ports = sys.argv[1], *(text.split(",") for text in sys.argv[2:5])
ledger = open(path, "ab", buffering=1 << 16)
turns = [(i, s, j, int(p)) for i, s in enumerate(sources) for j, p in enumerate(ports)]
print("ready", flush=True)
running, turn = False, 0
while True:
    if select.select([sys.stdin], [], [], BETWEEN if running else None)[0]:
        word = sys.stdin.readline().strip()
        running = word == "go"
        ledger.flush()
        print(word, flush=True)
        if word in ("end", ""):
            break
    if running:
        i, source, j, port = turns[turn % len(turns)]
        turn += 1
        began = time.monotonic_ns()
        error = attempt(source, machine[1 if ":" in source else 0], port)
        ledger.write(struct.pack("<QQHHHH", began, time.monotonic_ns(), i, j, error, 0))
