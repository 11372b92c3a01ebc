/*
 * What one connection costs the kernel: connect, accept and close in a tight loop on one CPU, no other process
 * involved. Prints nanoseconds a connection, one line a block.
 *
 *     connect-loop LISTEN-ADDRESS LISTEN-PORT BLOCKS CONNECTIONS-A-BLOCK TARGET:PORT...
 *
 * The targets take turns, block by block, so that what disturbs the machine disturbs them alike; a line is
 * "INDEX NANOSECONDS". Connects are non-blocking; both ends close with a reset, so that no TIME_WAIT stays.
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

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void reset_on_close(int fd)
{
	struct linger linger = { .l_onoff = 1, .l_linger = 0 };

	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)))
		die("SO_LINGER");
}

static void connect_once(int listener, const struct sockaddr_in *target)
{
	int near = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), far;

	if (near < 0)
		die("socket");
	reset_on_close(near);
	/* On loopback the handshake is over when connect returns. */
	if (connect(near, (const struct sockaddr *)target, sizeof(*target)) && errno != EINPROGRESS)
		die("connect");
	far = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	if (far < 0)
		die("accept");
	reset_on_close(far);
	close(near);
	close(far);
}

int main(int argc, char **argv)
{
	int on = 1, listener, blocks, count, targets = argc - 5;
	struct sockaddr_in listen_address, target[16];

	if (targets < 1 || targets > 16) {
		fprintf(stderr, "usage: connect-loop ADDRESS PORT BLOCKS COUNT TARGET:PORT...\n");
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
			long long began = now();

			for (int n = 0; n < count; n++)
				connect_once(listener, &target[i]);
			printf("%d %.1f\n", i, (double)(now() - began) / count);
		}
	}
	return 0;
}
