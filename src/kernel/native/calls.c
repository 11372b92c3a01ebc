// SPDX-License-Identifier: Apache-2.0
/*
 * The system calls that src/kernel needs beside libbpf. Each gives its result or -errno: a foreign-function runtime may
 * run code of its own between a call and the reading of errno, so errno never leaves this file.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define API __attribute__((visibility("default")))
/* clang-format off */
#define RESULT(call)                               \
	({                                         \
		long result_ = (call);             \
		result_ == -1 ? -errno : result_;  \
	})
/* clang-format on */

#define PLACE_STACK (64 * 1024)

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

/* flags: O_CLOEXEC is added. */
API int kmesh_open(const char *path, int flags, int mode)
{
	return RESULT(open(path, flags | O_CLOEXEC, mode));
}

API int kmesh_close(int fd)
{
	return RESULT(close(fd));
}

API int kmesh_dup(int fd)
{
	return RESULT(fcntl(fd, F_DUPFD_CLOEXEC, 3));
}

API long kmesh_write(int fd, const void *bytes, unsigned long size)
{
	return RESULT(write(fd, bytes, size));
}

API int kmesh_truncate(int fd, long size)
{
	return RESULT(ftruncate(fd, size));
}

/* Exclusive, does not wait: -EWOULDBLOCK when another holds it. */
API int kmesh_flock(int fd)
{
	return RESULT(flock(fd, LOCK_EX | LOCK_NB));
}

/* Shared and writable; the address goes to *address. */
API int kmesh_mmap(int fd, unsigned long size, unsigned long *address)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		return -errno;
	*address = (unsigned long)memory;
	return 0;
}

API int kmesh_munmap(void *memory, unsigned long size)
{
	return RESULT(munmap(memory, size));
}

API int kmesh_mount(const char *source, const char *target, const char *type, unsigned long flags)
{
	return RESULT(mount(source, target, type, flags, NULL));
}

API int kmesh_unmount(const char *target)
{
	return RESULT(umount2(target, MNT_DETACH));
}

API int kmesh_unshare_netns(void)
{
	return RESULT(unshare(CLONE_NEWNET));
}

/* Brings `lo` up; the kernel gives it 127.0.0.1 and ::1 by itself. */
API int kmesh_loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int error;

	if (fd < 0)
		return -errno;
	error = RESULT(ioctl(fd, SIOCGIFFLAGS, &request));
	if (!error) {
		request.ifr_flags |= IFF_UP;
		error = RESULT(ioctl(fd, SIOCSIFFLAGS, &request));
	}
	close(fd);
	return error;
}

/* -ENOPROTOOPT before 5.14. */
API int kmesh_netns_cookie(unsigned long *cookie)
{
	socklen_t size = sizeof(*cookie);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int error;

	if (fd < 0)
		return -errno;
	error = RESULT(getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, cookie, &size));
	close(fd);
	return error;
}

/*
 * One datagram to a unix socket; `name` is a path, or a zero byte and an abstract name. Waits two seconds at most for a
 * receiver that is behind: -EAGAIN.
 */
API int kmesh_send_datagram(const void *name, unsigned int name_size, const void *message, unsigned long size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval patience = { .tv_sec = 2 };
	int error = 0;
	int fd;

	if (name_size == 0 || name_size > sizeof(address.sun_path))
		return -EINVAL;
	memcpy(address.sun_path, name, name_size);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (sendto(fd, message, size, MSG_NOSIGNAL, (struct sockaddr *)&address,
		   offsetof(struct sockaddr_un, sun_path) + name_size) < 0)
		error = -errno;
	close(fd);
	return error;
}

API int kmesh_prctl(int option, unsigned long value)
{
	return RESULT(prctl(option, value, 0, 0, 0));
}

/* Returns when every CPU has been through a grace period: no program still reads what was replaced before the call. */
API int kmesh_monotonic(unsigned long long *nanoseconds)
{
	struct timespec now;
	int result = RESULT(clock_gettime(CLOCK_MONOTONIC, &now));

	*nanoseconds = now.tv_sec * 1000000000ull + now.tv_nsec;
	return result;
}

API int kmesh_membarrier(void)
{
	return RESULT(syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0));
}

/*
 * A cgroup by its id, which is its inode number and also its file handle (FILEID_KERNFS). `mount` is an fd of any
 * directory in that hierarchy.
 */
API int kmesh_open_cgroup(int mount, unsigned long id)
{
	struct {
		struct file_handle head;
		unsigned long id;
	} handle = { .head = { .handle_bytes = sizeof(id), .handle_type = 0xfe } };

	memcpy(handle.head.f_handle, &id, sizeof(id));
	return RESULT(open_by_handle_at(mount, &handle.head, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static char **vector(char *strings, int count)
{
	char **list = calloc(count + 1, sizeof(*list));

	for (int i = 0; list && i < count; i++) {
		list[i] = strings;
		strings += strlen(strings) + 1;
	}
	return list;
}

/* arguments and environment: zero-terminated strings one behind the other. Only returns on failure. */
API int kmesh_exec(const char *path, char *arguments, int argument_count, char *environment, int variable_count)
{
	char **argv = vector(arguments, argument_count);
	char **envp = vector(environment, variable_count);
	int error = -ENOMEM;

	if (argv && envp) {
		execve(path, argv, envp);
		error = -errno;
	}
	free(argv);
	free(envp);
	return error;
}

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4
#endif

/*
 * A copy of this process with one thread, past the handlers that libraries have for fork(): between this and execve() or
 * _exit() only what is safe in a signal handler may be called.
 */
static pid_t copy_of_this(void)
{
	return RESULT(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
}

static void run_orphan(const char *path, char **argv, char **envp, int report)
{
	sigset_t none;
	int error;

	sigemptyset(&none);
	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* From 5.11 on; all that we open ourselves is closed by execve() anyway. */
	syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
	execve(path, argv, envp);
	error = -errno;
	if (write(report, &error, sizeof(error)) < 0)
		_exit(126);
	_exit(127);
}

/* Both halves of the way to a process that has no parent of ours report by the pipe: first its pid, then what execve() said. */
static int spawn_orphan(const char *path, char **argv, char **envp)
{
	sigset_t all, before;
	int report[2], word, pid = -EIO, error;
	pid_t middle;

	error = RESULT(pipe2(report, O_CLOEXEC));
	if (error)
		return error;
	/* No handler of this process may run in its copy. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	middle = copy_of_this();
	if (middle == 0) {
		pid_t orphan = copy_of_this();

		if (orphan == 0)
			run_orphan(path, argv, envp, report[1]);
		word = orphan;
		_exit(write(report[1], &word, sizeof(word)) < 0);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	close(report[1]);
	if (middle < 0)
		pid = middle;
	else
		while (waitpid(middle, NULL, 0) < 0 && errno == EINTR)
			;
	/* An error wins over the pid, whichever comes first. */
	while (middle > 0 && (error = read(report[0], &word, sizeof(word))) != 0) {
		if (error < 0 && errno == EINTR)
			continue;
		if (error != sizeof(word))
			break;
		if (word < 0 || pid == -EIO)
			pid = word;
		if (word < 0)
			break;
	}
	close(report[0]);
	return pid;
}

/*
 * Starts a program that is nobody's child: whoever takes in orphans, a service manager, is its parent at once. It has this
 * process's standard input, output and error and nothing else. arguments and environment as for kmesh_exec. Gives its pid.
 */
API int kmesh_spawn_orphan(const char *path, char *arguments, int argument_count, char *environment, int variable_count)
{
	char **argv = vector(arguments, argument_count);
	char **envp = vector(environment, variable_count);
	int pid = argv && envp ? spawn_orphan(path, argv, envp) : -ENOMEM;

	free(argv);
	free(envp);
	return pid;
}

/* The object goes to *object. `name` is for messages. */
API int kmesh_object_open(const void *image, unsigned long size, const char *name, unsigned long *object)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = name);
	struct bpf_object *opened = bpf_object__open_mem(image, size, &options);

	if (!opened)
		return errno ? -errno : -EINVAL;
	*object = (unsigned long)opened;
	return 0;
}

/* inner: fd of the template of a map-in-map, else -1. The result is an fd. */
API int kmesh_map_create(int type, const char *name, unsigned int key_size, unsigned int value_size,
			 unsigned int max_entries, unsigned int flags, int inner)
{
	LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = flags);

	if (inner >= 0)
		options.inner_map_fd = inner;
	return bpf_map_create(type, name, key_size, value_size, max_entries, &options);
}

/* Runs of a program over a packet; see bpf_prog_test_run_opts. */
API int kmesh_test_run(int program, const void *packet, unsigned int packet_size, int repeat, unsigned int *result,
		       unsigned int *nanoseconds)
{
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet, .data_size_in = packet_size, .repeat = repeat);
	int error = bpf_prog_test_run_opts(program, &options);

	*result = options.retval;
	*nanoseconds = options.duration;
	return error;
}

/* One inner map on its way into an outer one. */
struct placement {
	pthread_t thread;
	int outer;
	unsigned int key;
	int inner;
	int result;
};

static void *place(void *argument)
{
	struct placement *p = argument;

	p->result = bpf_map_update_elem(p->outer, &p->key, &p->inner, BPF_ANY);
	return NULL;
}

/*
 * Puts inner map fds[i * 3 + 2] under key fds[i * 3 + 1] of outer map fds[i * 3], for all i < count. The kernel waits for
 * a grace period in each of these updates; in threads of their own they wait together. Gives the first error.
 */
API int kmesh_place_inner(const unsigned int *fds, unsigned int count)
{
	struct placement *all = calloc(count, sizeof(*all));
	pthread_attr_t small;
	int result = 0;

	if (!all)
		return -ENOMEM;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, PLACE_STACK);
	for (unsigned int i = 0; i < count; i++) {
		all[i] = (struct placement){ .outer = fds[i * 3], .key = fds[i * 3 + 1], .inner = fds[i * 3 + 2] };
		/* Without a thread it takes longer, no more. */
		if (i + 1 == count || pthread_create(&all[i].thread, &small, place, &all[i])) {
			all[i].thread = 0;
			place(&all[i]);
		}
	}
	for (unsigned int i = 0; i < count; i++) {
		if (all[i].thread)
			pthread_join(all[i].thread, NULL);
		if (all[i].result < 0 && !result)
			result = all[i].result;
	}
	pthread_attr_destroy(&small);
	free(all);
	return result;
}

/* Fills ids with those of the maps that a program uses, `room` at most; gives how many it uses. */
API int kmesh_program_maps(int program, unsigned int *ids, unsigned int room)
{
	struct bpf_prog_info info = { .nr_map_ids = room, .map_ids = (unsigned long)ids };
	unsigned int size = sizeof(info);
	int error = bpf_prog_get_info_by_fd(program, &info, &size);

	return error ? error : (int)info.nr_map_ids;
}

/* Runs an iterator program over all that a map holds (BPF_TRACE_ITER); what it prints is thrown away. */
API int kmesh_walk_map(int program, int map)
{
	/* Only the member that is meant: 5.10 knows no longer one, and refuses bytes behind it that are not zero. */
	union bpf_iter_link_info info = { .map = { .map_fd = map } };
	LIBBPF_OPTS(bpf_link_create_opts, options, .iter_info = &info, .iter_info_len = sizeof(info.map));
	int link = bpf_link_create(program, 0, BPF_TRACE_ITER, &options), walk, error = 0;
	char printed[64];
	long length;

	if (link < 0)
		return link;
	walk = bpf_iter_create(link);
	close(link);
	if (walk < 0)
		return walk;
	do
		length = read(walk, printed, sizeof(printed));
	while (length > 0 || (length < 0 && (errno == EINTR || errno == EAGAIN)));
	if (length < 0)
		error = -errno;
	close(walk);
	return error;
}

/* Runs a raw tracepoint program as the calling thread, with two arguments; gives 0 and its return value in `result`. */
API int kmesh_ask(int program, unsigned int first, unsigned int second, unsigned int *result)
{
	unsigned long long arguments[2] = { first, second };
	LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = arguments, .ctx_size_in = sizeof(arguments));
	int error = bpf_prog_test_run_opts(program, &options);

	*result = options.retval;
	return error;
}
