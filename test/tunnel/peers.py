"""For tests: an app that tells each caller what accept() and getpeername() say of it. argv: ADDRESS:PORT[/late] ...

Where it is late, it ends a connection at once and keeps its socket until the next one has ended.
"""
import socket
import sys
import threading


def serve(address, port, late):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((address, port))
    listener.listen(64)
    kept = None
    while True:
        connection, accepted = listener.accept()
        peer = connection.getpeername()
        text = f"{accepted[0]} {accepted[1]} {peer[0]} {peer[1]}"
        connection.sendall(text.encode())
        while connection.recv(4096):
            pass
        if late:
            connection.shutdown(socket.SHUT_RDWR)
            connection, kept = kept, connection
        if connection:
            connection.close()


threads = []
for argument in sys.argv[1:]:
    place, _, late = argument.partition("/")
    host, _, number = place.rpartition(":")
    threads.append(threading.Thread(target=serve, args=(host.strip("[]"), int(number), late)))
for thread in threads:
    thread.start()
print("ready", flush=True)
