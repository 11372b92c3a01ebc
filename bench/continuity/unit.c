/*
 * The part of systemd that kmesh-tunnel.socket and kmesh-tunnel.service need: holds listening sockets, and starts the
 * command with them (sd_listen_fds(3)) each time that it is asked to.
 *
 *     unit NAME,ADDRESS,PORT[,DEVICE]... -- COMMAND...
 *
 * Each "start" on standard input is answered by "started PID". What the command leaves behind becomes a child of this
 * process, as it would be systemd's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 8
/* sd_listen_fds(3): the first descriptor. */
#define FIRST 3

static void die(const char *what)
{
	fprintf(stderr, "unit: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int listening(const char *address, int port, const char *device)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int six = strchr(address, ':') != NULL;
	int fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int on = 1;

	if (inet_pton(v4.sin_family, address, &v4.sin_addr) != 1 && inet_pton(AF_INET6, address, &v6.sin6_addr) != 1)
		die(address);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		die("socket");
	if (*device && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device) + 1))
		die(device);
	if (bind(fd, six ? (void *)&v6 : (void *)&v4, six ? sizeof(v6) : sizeof(v4)) || listen(fd, 4096))
		die(address);
	/* Out of the way of the numbers that the command gets. */
	return fcntl(fd, F_DUPFD_CLOEXEC, 64);
}

static pid_t start(const int *fds, int count, const char *names, char **command)
{
	pid_t pid = fork();
	char text[16];

	if (pid)
		return pid;
	signal(SIGCHLD, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < count; i++)
		if (dup2(fds[i], FIRST + i) < 0)
			die("dup2");
	/* Standard output is for "started". */
	if (dup2(2, 1) < 0 || close(0) || open("/dev/null", O_RDONLY) != 0)
		die("standard input");
	snprintf(text, sizeof(text), "%d", count);
	setenv("LISTEN_FDS", text, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	snprintf(text, sizeof(text), "%d", getpid());
	setenv("LISTEN_PID", text, 1);
	execv(command[0], command);
	die(command[0]);
	return 0;
}

int main(int argc, char **argv)
{
	int fds[MOST], count = 0;
	char names[256] = "";
	char line[64];
	int at = 1;

	for (; at < argc && strcmp(argv[at], "--") && count < MOST; at++) {
		char name[32], address[64], device[32] = "";
		int port;

		if (sscanf(argv[at], "%31[^,],%63[^,],%d,%31s", name, address, &port, device) < 3)
			die(argv[at]);
		fds[count++] = listening(address, port, device);
		snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s", count > 1 ? ":" : "", name);
	}
	if (at + 1 >= argc || !count) {
		fprintf(stderr, "usage: unit NAME,ADDRESS,PORT[,DEVICE]... -- COMMAND...\n");
		return 2;
	}
	/* Ended children go without a wait. */
	signal(SIGCHLD, SIG_IGN);
	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		die("PR_SET_CHILD_SUBREAPER");
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		pid_t pid;

		if (strcmp(line, "start\n"))
			continue;
		pid = start(fds, count, names, argv + at + 1);
		if (pid < 0)
			die("fork");
		printf("started %d\n", pid);
		fflush(stdout);
	}
	return 0;
}
