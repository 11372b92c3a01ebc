"""Peers of test/inbound. serve PORT...: an app that answers "app PEER LOCAL". tunnel MAP [4|6...]: offers listening sockets on
loopback by the pinned sockmap and answers "tunnel PEER LOCAL". ask SOURCE ADDRESS PORT: prints the answer or the error's name.
storm ADDRESS PORT SECONDS: connects without a pause, prints how many were accepted and refused. keep PORT...: an app that
answers nothing and keeps connections. hold PORT SOURCE>ADDRESS...: connects, prints "ready", then for each line of standard
input how each connection is: "open", or how it ended. callers ADDRESS PORT,... ROOTS NAME=SOURCE[=CERTIFICATE]...: connects as
each of them in turn without an end, by mutual TLS those with a certificate, sends a line, and prints "NAME PORT in" or "NAME PORT out"."""
import ctypes, errno, os, select, socket, ssl, struct, sys, time

def name(address):
    return "%s:%d" % (address[0].replace("::ffff:", ""), address[1])

def answer(listeners, word):
    print("ready", flush=True)
    while True:
        for one in select.select(listeners, [], [])[0]:
            connection, peer = one.accept()
            try:
                connection.sendall(("%s %s %s" % (word, name(peer).rsplit(":", 1)[0], name(connection.getsockname()))).encode())
            except OSError:
                pass
            connection.close()

def listen(family, address, port):
    one = socket.socket(family)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind((address, port))
    one.listen(128)
    return one

def bpf(command, attributes):
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes + bytes(128 - len(attributes)))
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    result = libc.syscall(number, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def offer(path, index, fd):
    pin = ctypes.create_string_buffer(path.encode())
    table = bpf(7, struct.pack("QII", ctypes.addressof(pin), 0, 0))
    key, value = ctypes.create_string_buffer(struct.pack("I", index)), ctypes.create_string_buffer(struct.pack("Q", fd))
    bpf(2, struct.pack("IIQQQ", table, 0, ctypes.addressof(key), ctypes.addressof(value), 0))

def connect(source, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family)
    one.settimeout(3)
    try:
        if source:
            one.bind((source, 0))
        one.connect((address, port))
        return one.recv(200).decode() or "closed"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    finally:
        one.close()

def call(source, address, port, context):
    one = socket.socket()
    one.settimeout(10)
    try:
        one.bind((source, 0))
        one.connect((address, port))
        if context:
            one = context.wrap_socket(one)
        # A tunnel tells plaintext by its first bytes.
        one.sendall(b"hello\n")
        return "in" if one.recv(200).startswith(b"app") else "out"
    except (ConnectionError, ssl.SSLEOFError):
        return "out"
    except OSError as error:
        return repr(error).replace(" ", "_")
    finally:
        one.close()

def certified(roots, file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(roots)
    context.load_cert_chain(file)
    context.set_alpn_protocols(["istio"])
    return context

mode, rest = sys.argv[1], sys.argv[2:]
if mode == "serve":
    answer([listen(socket.AF_INET6, "::", int(port)) for port in rest], "app")
elif mode == "tunnel":
    v4, v6 = listen(socket.AF_INET, "127.0.0.1", 15006), listen(socket.AF_INET6, "::1", 15006)
    offer(rest[0], 0, v4.fileno())
    offer(rest[0], 1, v6.fileno())
    answer([v4, v6], "tunnel")
elif mode == "ask":
    print(connect(rest[0], rest[1], int(rest[2])))
elif mode == "keep":
    listeners, held = [listen(socket.AF_INET6, "::", int(port)) for port in rest], []
    print("ready", flush=True)
    while True:
        held += [one.accept()[0] for one in select.select(listeners, [], [])[0]]
elif mode == "hold":
    held = []
    for source, address in (pair.split(">") for pair in rest[1:]):
        one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        one.bind((source, 0))
        one.connect((address, int(rest[0])))
        held.append(one)
    print("ready", flush=True)
    for _ in sys.stdin:
        words = []
        for one in held:
            try:
                words.append("open" if one.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) else "closed")
            except BlockingIOError:
                words.append("open")
            except OSError as error:
                words.append(errno.errorcode.get(error.errno))
        print(" ".join(words), flush=True)
elif mode == "storm":
    counts, end = {}, time.time() + float(rest[2])
    while time.time() < end:
        word = connect("", rest[0], int(rest[1])).split(" ")[0]
        counts[word] = counts.get(word, 0) + 1
    print(" ".join("%s=%d" % each for each in sorted(counts.items())))
elif mode == "callers":
    callers = [(each.split("=") + [None])[:3] for each in rest[3:]]
    contexts = {name: certified(rest[2], file) if file else None for name, _, file in callers}
    print("ready", flush=True)
    while True:
        for name, source, _ in callers:
            for port in rest[1].split(","):
                print(name, port, call(source, rest[0], int(port), contexts[name]), flush=True)
