/*
 * What one connection costs the kernel: connect, accept and close in a tight loop on one CPU, no other process
 * involved. Prints nanoseconds of CPU time a connection, one line a block: what else runs on the CPU is not counted.
 *
 *     connect-loop [-e] LISTEN-ADDRESS LISTEN-PORT BLOCKS CONNECTIONS-A-BLOCK TARGET:PORT...
 *
 * The targets take turns, block by block, so that what disturbs the machine disturbs them alike; a line is
 * "INDEX NANOSECONDS". With -e each line also has the nanoseconds of an exchange on an open connection, a byte there and
 * a byte back; a block then has as many exchanges as connections. Connects are non-blocking; both ends close with a
 * reset, so that no TIME_WAIT stays.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "connect-loop: %s: %s\n", what, strerror(errno));
	exit(1);
}

static struct sockaddr_in address_of(const char *text, int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };

	if (inet_pton(AF_INET, text, &address.sin_addr) != 1)
		die(text);
	return address;
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void reset_on_close(int fd)
{
	struct linger linger = { .l_onoff = 1, .l_linger = 0 };

	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)))
		die("SO_LINGER");
}

/* Opens one connection: ends[0] is the app's, ends[1] the server's. */
static void connect_once(int listener, const struct sockaddr_in *target, int ends[2])
{
	ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (ends[0] < 0)
		die("socket");
	reset_on_close(ends[0]);
	/* On loopback the handshake is over when connect returns. */
	if (connect(ends[0], (const struct sockaddr *)target, sizeof(*target)) && errno != EINPROGRESS)
		die("connect");
	ends[1] = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	if (ends[1] < 0)
		die("accept");
	reset_on_close(ends[1]);
}

static void close_both(const int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

static double connections(int listener, const struct sockaddr_in *target, int count)
{
	long long began = now();
	int ends[2];

	for (int n = 0; n < count; n++) {
		connect_once(listener, target, ends);
		close_both(ends);
	}
	return (double)(now() - began) / count;
}

static double exchanges(int listener, const struct sockaddr_in *target, int count)
{
	int ends[2], on = 1;
	long long began;
	char byte = 0;

	connect_once(listener, target, ends);
	for (int i = 0; i < 2; i++)
		setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	began = now();
	for (int n = 0; n < count; n++) {
		for (int i = 0; i < 2; i++) {
			if (send(ends[i], &byte, 1, 0) != 1 || recv(ends[1 - i], &byte, 1, 0) != 1)
				die("exchange");
		}
	}
	began = now() - began;
	close_both(ends);
	return (double)began / count;
}

int main(int argc, char **argv)
{
	int exchange = argc > 1 && !strcmp(argv[1], "-e"), on = 1, listener, blocks, count, targets;
	struct sockaddr_in listen_address, target[16];

	argc -= exchange;
	argv += exchange;
	targets = argc - 5;
	if (targets < 1 || targets > 16) {
		fprintf(stderr, "usage: connect-loop [-e] ADDRESS PORT BLOCKS COUNT TARGET:PORT...\n");
		return 2;
	}
	listen_address = address_of(argv[1], atoi(argv[2]));
	blocks = atoi(argv[3]);
	count = atoi(argv[4]);
	for (int i = 0; i < targets; i++) {
		char *colon = strchr(argv[5 + i], ':');

		if (!colon)
			die("a target is ADDRESS:PORT");
		*colon = 0;
		target[i] = address_of(argv[5 + i], atoi(colon + 1));
	}
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&listen_address, sizeof(listen_address)) || listen(listener, 128))
		die("listen");
	for (int block = 0; block < blocks; block++) {
		for (int i = 0; i < targets; i++) {
			printf("%d %.1f", i, connections(listener, &target[i], count));
			if (exchange)
				printf(" %.1f", exchanges(listener, &target[i], count));
			putchar('\n');
		}
	}
	return 0;
}
