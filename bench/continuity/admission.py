"""Connects to the machine from each source address to each port in turn, and writes each outcome into a ledger:

    admission.py LEDGER SOURCES MACHINE PORTS      (lists joined by commas; MACHINE: its IPv4 and its IPv6 address)

An entry has 24 bytes: when connect() began and ended (CLOCK_MONOTONIC, ns), the indexes of source and port, an errno (0: the
app answered). One connection in so many is kept open for a while and asked again: if that fails, it has another entry. Takes
"go", "pause" and "end" from standard input and answers each with the word and how many connections are open."""
import collections, errno, select, socket, struct, sys, time

BETWEEN = 0.002
LINGER = struct.pack("ii", 1, 0)
# One in KEPT, as long as so many others take. KEPT shares no factor with the number of turns: all pairs get their turn.
KEPT, KEPT_FOR = 41, 800

def ask(one, turn):
    """A request and its answer, each of another length than the last."""
    length, answer = 8 + turn % 1009, 100 + turn * 7 % 2003
    one.sendall(struct.pack("<II", length, answer) + bytes(length - 8))
    got = one.recv(answer, socket.MSG_WAITALL)
    return 0 if len(got) == answer and got.startswith(b"app ") else errno.EPROTO

def attempt(act, one):
    try:
        return act()
    except TimeoutError:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno

def opened(source, machine, port, turn):
    one = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET)
    one.settimeout(5)
    # A reset at the end: no port stays in TIME_WAIT, where a later SYN would get an ACK instead of a refusal.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    def act():
        one.bind((source, 0))
        one.connect((machine, port))
        return ask(one, turn)
    return one, attempt(act, one)

path, sources, machine, ports = sys.argv[1], *(text.split(",") for text in sys.argv[2:5])
ledger = open(path, "ab", buffering=1 << 16)
turns = [(i, s, j, int(p)) for i, s in enumerate(sources) for j, p in enumerate(ports)]
kept = collections.deque()
print("ready", flush=True)
running, turn = False, 0

def note(began, i, j, error):
    ledger.write(struct.pack("<QQHHHH", began, time.monotonic_ns(), i, j, error, 0))

def end_oldest():
    """What was admitted goes on whatever policies come: only a failure is worth an entry."""
    one, i, j, began, _ = kept.popleft()
    error = attempt(lambda: ask(one, turn), one)
    one.close()
    if error:
        note(began, i, j, error)

while True:
    if select.select([sys.stdin], [], [], BETWEEN if running else None)[0]:
        word = sys.stdin.readline().strip()
        running = word == "go"
        while word == "end" and kept:
            end_oldest()
        ledger.flush()
        print(word, len(kept), flush=True)
        if word in ("end", ""):
            break
    if running:
        while kept and kept[0][4] <= turn:
            end_oldest()
        i, source, j, port = turns[turn % len(turns)]
        turn += 1
        began = time.monotonic_ns()
        one, error = opened(source, machine[1 if ":" in source else 0], port, turn)
        note(began, i, j, error)
        if error == 0 and turn % KEPT == 0:
            kept.append((one, i, j, began, turn + KEPT_FOR))
        else:
            one.close()
