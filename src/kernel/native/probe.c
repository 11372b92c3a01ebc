// SPDX-License-Identifier: Apache-2.0
/*
 * A child that makes connections in a cgroup of its own, to prove programs before an app meets them. It is cloned from a
 * process with many threads, so it keeps to system calls. It ends with its parent, or when the parent's end of the
 * control socket is closed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

/* Loopback answers in microseconds; what takes longer does not answer. */
#define PATIENCE_MS 1000

struct order {
	unsigned int family; /* AF_INET, AF_INET6; 0 = close what is open */
	unsigned int port;
	int listener;
	unsigned int zero;
	unsigned char address[16]; /* IPv4 as ::ffff:a.b.c.d */
};

enum stage {
	STAGE_DONE = 0,
	STAGE_CGROUP = 1,
	STAGE_SOCKET = 2,
	STAGE_CONNECT = 3,
	STAGE_ACCEPT = 4,
	STAGE_BYTES = 5,
	STAGE_PEER = 6,
};

struct outcome {
	unsigned int stage; /* at which it failed */
	int error; /* errno; 0 = what came was not what was sent */
	unsigned int peer_port;
	unsigned int zero;
	unsigned char peer[16];
};

union name {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static int ready(int fd, short events)
{
	struct pollfd wait = { .fd = fd, .events = events };
	int count = poll(&wait, 1, PATIENCE_MS);

	return count > 0 ? 0 : count == 0 ? ETIMEDOUT : errno;
}

static int dial(int fd, const struct order *order)
{
	union name name = {};
	socklen_t size;
	int error = 0;

	if (order->family == AF_INET6) {
		size = sizeof(name.v6);
		name.v6.sin6_family = AF_INET6;
		name.v6.sin6_port = htons(order->port);
		memcpy(&name.v6.sin6_addr, order->address, 16);
	} else {
		size = sizeof(name.v4);
		name.v4.sin_family = AF_INET;
		name.v4.sin_port = htons(order->port);
		memcpy(&name.v4.sin_addr, order->address + 12, 4);
	}
	if (!connect(fd, &name.any, size))
		return 0;
	if (errno != EINPROGRESS)
		return errno;
	error = ready(fd, POLLOUT);
	if (error)
		return error;
	size = sizeof(error);
	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) ? errno : error;
}

static struct outcome failed(enum stage stage, int error)
{
	return (struct outcome){ .stage = stage, .error = error };
}

/* Who has answered must be the parent's listener: what is written there has to arrive here. */
static struct outcome talk(int fd, int server)
{
	static const char said[] = "kmesh";
	char heard[sizeof(said)] = {};
	int error;

	if (write(server, said, sizeof(said)) != sizeof(said))
		return failed(STAGE_BYTES, errno);
	error = ready(fd, POLLIN);
	if (!error && read(fd, heard, sizeof(heard)) < 0)
		error = errno;
	if (error || memcmp(said, heard, sizeof(said)))
		return failed(STAGE_BYTES, error);
	return (struct outcome){};
}

static struct outcome peer_of(int fd)
{
	struct outcome outcome = {};
	union name peer = {};
	socklen_t size = sizeof(peer);

	if (getpeername(fd, &peer.any, &size))
		return failed(STAGE_PEER, errno);
	if (peer.any.sa_family == AF_INET6) {
		memcpy(outcome.peer, &peer.v6.sin6_addr, 16);
		outcome.peer_port = ntohs(peer.v6.sin6_port);
	} else {
		memset(outcome.peer + 10, 0xff, 2);
		memcpy(outcome.peer + 12, &peer.v4.sin_addr, 4);
		outcome.peer_port = ntohs(peer.v4.sin_port);
	}
	return outcome;
}

static struct outcome connect_once(const struct order *order, int *fd, int *server)
{
	struct outcome outcome;
	int error;

	*fd = socket(order->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (*fd < 0)
		return failed(STAGE_SOCKET, errno);
	error = dial(*fd, order);
	if (error)
		return failed(STAGE_CONNECT, error);
	error = ready(order->listener, POLLIN);
	if (error)
		return failed(STAGE_ACCEPT, error);
	*server = accept4(order->listener, NULL, NULL, SOCK_CLOEXEC);
	if (*server < 0)
		return failed(STAGE_ACCEPT, errno);
	outcome = talk(*fd, *server);
	return outcome.stage ? outcome : peer_of(*fd);
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static struct outcome enter(int cgroup)
{
	int procs = openat(cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	struct outcome outcome = {};

	if (procs < 0 || write(procs, "0", 1) != 1)
		outcome = failed(STAGE_CGROUP, errno);
	shut(&procs);
	return outcome;
}

/* Moves itself first: a socket belongs to the cgroup in which it was made. */
static void child(int control, int cgroup)
{
	struct outcome outcome = {};
	int fd = -1, server = -1;
	struct order order;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	outcome = enter(cgroup);
	while (write(control, &outcome, sizeof(outcome)) == sizeof(outcome)) {
		if (read(control, &order, sizeof(order)) != sizeof(order))
			break;
		shut(&fd);
		shut(&server);
		outcome = order.family ? connect_once(&order, &fd, &server) : (struct outcome){};
	}
	_exit(0);
}

/*
 * Gives the pid of a child in this cgroup, and in *control the descriptor over which it takes orders. Its first outcome
 * tells whether it is there.
 */
API int kmesh_probe_start(int cgroup, int *control)
{
	sigset_t all, before;
	int ends[2];
	long pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
		return -errno;
	/* The runtime's signal handlers must not run in the child. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	/* No exit signal: the runtime must not hear of a child that is none of its own. */
	pid = syscall(SYS_clone, 0, 0, 0, 0, 0);
	if (pid == 0) {
		close(ends[0]);
		child(ends[1], cgroup);
	}
	if (pid < 0)
		pid = -errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	close(ends[1]);
	if (pid < 0)
		close(ends[0]);
	else
		*control = ends[0];
	return pid;
}

/* Sends an order (NULL: none) and waits for the outcome. */
API int kmesh_probe_order(int control, const struct order *order, struct outcome *outcome)
{
	/* One order waits up to three times. */
	struct pollfd wait = { .fd = control, .events = POLLIN };
	int count;

	if (order && send(control, order, sizeof(*order), MSG_NOSIGNAL) < 0)
		return -errno;
	count = poll(&wait, 1, 4 * PATIENCE_MS);
	if (count <= 0)
		return count ? -errno : -ETIMEDOUT;
	return read(control, outcome, sizeof(*outcome)) == sizeof(*outcome) ? 0 : -EPIPE;
}

API void kmesh_probe_end(int pid, int control)
{
	close(control);
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
		;
}

/* Listens on loopback, on a port that the kernel chooses; gives the descriptor. */
API int kmesh_listen_loopback(int family, unsigned int *port)
{
	union name name = {};
	socklen_t size = family == AF_INET6 ? sizeof(name.v6) : sizeof(name.v4);
	int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int error;

	if (fd < 0)
		return -errno;
	if (family == AF_INET6) {
		name.v6.sin6_family = AF_INET6;
		name.v6.sin6_addr = in6addr_loopback;
	} else {
		name.v4.sin_family = AF_INET;
		name.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	if (bind(fd, &name.any, size) || listen(fd, 1) || getsockname(fd, &name.any, &size)) {
		error = errno;
		close(fd);
		return -error;
	}
	*port = ntohs(family == AF_INET6 ? name.v6.sin6_port : name.v4.sin_port);
	return fd;
}
