#!/usr/bin/env python3
"""One way in which a connect() may go: outcomes.py WAY ADDRESS PORT ELSEWHERE OWN. Prints "done" when the socket has
told all it will, and ends when a line comes. WAY,WAY,... goes one after the other. ELSEWHERE: a port of the loopback address that nobody governs; OWN: a
port of the endpoint's own address, where this script is the server of the service's connections."""
import ctypes
import errno
import os
import select
import socket
import struct
import sys
import time

way, address, port, elsewhere, own = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
FAMILY = socket.AF_INET6 if ":" in address else socket.AF_INET
LOOPBACK = "::1" if FAMILY == socket.AF_INET6 else "127.0.0.1"
AF_UNSPEC = struct.pack("HHI24x", 0, 0, 0)
TCP_FASTOPEN_CONNECT = 30
kept = []


def tcp(blocking=True, synretries=None):
    sock = socket.socket(FAMILY, socket.SOCK_STREAM)
    sock.setblocking(blocking)
    if synretries is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, synretries)
    return sock


def connect(sock, expected=0, to=None):
    try:
        sock.connect(to or (address, port))
        got = 0
    except OSError as error:
        got = error.errno
    assert got in (expected if isinstance(expected, tuple) else (expected,)), f"connect: {got}, not {expected}"


def disconnect(sock):
    assert ctypes.CDLL(None).connect(sock.fileno(), AF_UNSPEC, len(AF_UNSPEC)) == 0


def error_of(sock):
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def begin(sock):
    """A non-blocking connect() until there is an answer."""
    connect(sock, (0, errno.EINPROGRESS))
    select.select([], [sock], [], 10)


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def served():
    """A connection whose other end is in this script, too."""
    at, at_port = own.rsplit(":", 1)
    server = socket.socket(FAMILY, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((at, int(at_port)))
    server.listen()
    sock = tcp()
    connect(sock)
    peer, _ = server.accept()
    server.close()
    return sock, peer


def plain():
    sock = tcp()
    connect(sock)
    sock.close()


def nonblocking():
    sock = tcp(False)
    begin(sock)
    assert error_of(sock) == 0
    sock.close()


def reset_by_app():
    sock = tcp()
    connect(sock)
    reset_on_close(sock)
    sock.close()


def reset_by_peer():
    sock, peer = served()
    reset_on_close(peer)
    peer.close()
    time.sleep(0.05)
    sock.close()


def reset_by_peer_and_read():
    sock, peer = served()
    reset_on_close(peer)
    peer.close()
    time.sleep(0.05)
    assert error_of(sock) == errno.ECONNRESET
    sock.close()


def ended_by_both():
    sock, peer = served()
    sock.shutdown(socket.SHUT_WR)
    time.sleep(0.02)
    peer.close()
    time.sleep(0.05)
    sock.close()


def ended_by_peer():
    sock, peer = served()
    peer.close()
    time.sleep(0.02)
    sock.close()


def half_ended():
    sock, peer = served()
    sock.shutdown(socket.SHUT_WR)
    time.sleep(0.02)
    sock.close()
    kept.append(peer)


def unspecified():
    sock = tcp()
    connect(sock)
    disconnect(sock)
    sock.close()


def unspecified_and_read():
    sock = tcp()
    connect(sock)
    disconnect(sock)
    error_of(sock)
    sock.close()


def then_elsewhere():
    sock = tcp()
    connect(sock)
    disconnect(sock)
    connect(sock, 0, (LOOPBACK, elsewhere))
    kept.append(sock)


def fast_open():
    sock = tcp()
    sock.sendto(b"hello\n", socket.MSG_FASTOPEN, (address, port))
    sock.close()


def fast_open_deferred():
    sock = tcp()
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    connect(sock)
    sock.send(b"hello\n")
    sock.recv(1)
    sock.close()


def forked():
    sock = tcp()
    connect(sock)
    child = os.fork()
    if child == 0:
        sock.close()
        os._exit(0)
    os.waitpid(child, 0)
    sock.close()


def refused():
    sock = tcp()
    connect(sock, errno.ECONNREFUSED)
    sock.close()


def refused_nonblocking():
    sock = tcp(False)
    begin(sock)
    sock.close()


def refused_and_read():
    sock = tcp(False)
    begin(sock)
    assert error_of(sock) == errno.ECONNREFUSED
    sock.close()


def refused_twice():
    sock = tcp()
    connect(sock, errno.ECONNREFUSED)
    connect(sock, errno.ECONNREFUSED)
    sock.close()


def refused_then_elsewhere():
    sock = tcp()
    connect(sock, errno.ECONNREFUSED)
    connect(sock, 0, (LOOPBACK, elsewhere))
    kept.append(sock)


def refused_forked():
    sock = tcp()
    connect(sock, errno.ECONNREFUSED)
    if os.fork() == 0:
        sock.close()
        os._exit(0)
    os.wait()
    sock.close()


def refused_unspecified():
    sock = tcp()
    connect(sock, errno.ECONNREFUSED)
    disconnect(sock)
    sock.close()


def refused_fast_open():
    sock = tcp()
    try:
        sock.sendto(b"hello\n", socket.MSG_FASTOPEN, (address, port))
    except ConnectionRefusedError:
        pass
    sock.close()


def refused_fast_open_deferred():
    sock = tcp()
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    try:
        connect(sock, (0, errno.ECONNREFUSED))
        sock.send(b"hello\n")
        sock.recv(1)
    except OSError:
        pass
    sock.close()


def timed_out():
    sock = tcp(True, 1)
    connect(sock, errno.ETIMEDOUT)
    sock.close()


def timed_out_and_read():
    sock = tcp(False, 1)
    begin(sock)
    assert error_of(sock) == errno.ETIMEDOUT
    sock.close()


def given_up_early():
    sock = tcp(False)
    connect(sock, errno.EINPROGRESS)
    time.sleep(0.3)
    sock.close()


def given_up_late():
    sock = tcp(False)
    connect(sock, errno.EINPROGRESS)
    time.sleep(1.5)
    sock.close()


def send_timeout():
    sock = tcp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 500_000))
    connect(sock, (errno.EAGAIN, errno.EINPROGRESS))
    sock.close()


def shut_down_early():
    sock = tcp(False)
    connect(sock, errno.EINPROGRESS)
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def unspecified_early():
    sock = tcp(False)
    connect(sock, errno.EINPROGRESS)
    disconnect(sock)
    sock.close()


def unreachable():
    sock = tcp()
    connect(sock, (errno.ENETUNREACH, errno.EHOSTUNREACH))
    sock.close()


def no_answer_on_the_link():
    sock = tcp()
    connect(sock, errno.EHOSTUNREACH)
    sock.close()


def address_in_use():
    first = tcp()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    at = own.rsplit(":", 1)[0]
    first.bind((at, 0))
    connect(first)
    kept.append(first)
    second = tcp()
    second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    second.bind(first.getsockname()[:2])
    connect(second, errno.EADDRNOTAVAIL)
    second.close()


def address_in_use_again():
    # The second connect() of a socket that connected before has another sequence number to begin with.
    first = tcp()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    at = own.rsplit(":", 1)[0]
    first.bind((at, 0))
    second = tcp()
    second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    second.bind(first.getsockname()[:2])
    connect(second, 0, (LOOPBACK if at in ("127.0.0.1", "::1") else at, elsewhere))
    disconnect(second)
    connect(first)
    kept.append(first)
    connect(second, errno.EADDRNOTAVAIL)
    second.close()


def denied():
    sock = tcp()
    connect(sock, (errno.EPERM, errno.ECONNREFUSED, errno.EHOSTUNREACH))
    sock.close()


for each in way.split(","):
    globals()[each.replace("-", "_")]()
print("done", flush=True)
sys.stdin.readline()
