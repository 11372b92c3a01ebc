// SPDX-License-Identifier: Apache-2.0
/*
 * Creates a map whose elements no memory cgroup is charged for. From Linux 5.11 on, a map's elements are charged to the memory
 * cgroup of the task that created the map. What the programs allocate in connect() would be charged to another cgroup than the
 * app's sockets, and a CPU keeps a stock for one cgroup at a time: each connection would empty and fill it twice. The root
 * cgroup is charged for nothing.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

#define STACK_SIZE (64 * 1024)

struct creation {
	const char *procs;
	const struct bpf_map *map;
	struct bpf_map_create_opts options;
	int result;
};

static int enter(const char *procs)
{
	int fd = open(procs, O_WRONLY | O_CLOEXEC);
	int error;

	if (fd < 0)
		return -errno;
	error = write(fd, "0", 1) == 1 ? 0 : -errno;
	close(fd);
	return error;
}

static int create(void *argument)
{
	struct creation *c = argument;

	c->result = enter(c->procs);
	if (!c->result)
		c->result = bpf_map_create(bpf_map__type(c->map), bpf_map__name(c->map), bpf_map__key_size(c->map),
					   bpf_map__value_size(c->map), bpf_map__max_entries(c->map), &c->options);
	return 0;
}

/* Runs create() in a process that shares our memory and descriptors, while this thread waits. Only that process moves. */
static int create_in_root(struct creation *c)
{
	char *stack = malloc(STACK_SIZE);
	sigset_t all, before;
	int pid;

	if (!stack)
		return -ENOMEM;
	/* Or a handler of ours would run there, too. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = clone(create, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_FILES, c);
	if (pid < 0)
		c->result = -errno;
	else
		while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
			;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	free(stack);
	return c->result;
}

/*
 * Before the object is loaded: creates its map, which load then takes. `procs` is the file cgroup.procs of the root memory
 * cgroup. Gives 0 or -errno; the map is then as before.
 */
API int kmesh_map_uncharged(const struct bpf_object *object, struct bpf_map *map, const char *procs)
{
	struct creation c = { .procs = procs, .map = map, .result = -ECHILD };
	unsigned int size;
	const void *raw = btf__raw_data(bpf_object__btf(object), &size);
	struct btf *types = raw ? btf__new(raw, size) : NULL;
	int error;

	if (!types)
		return -EINVAL;
	error = btf__load_into_kernel(types);
	if (!error) {
		c.options.sz = sizeof(c.options);
		c.options.map_flags = bpf_map__map_flags(map);
		c.options.btf_fd = btf__fd(types);
		c.options.btf_key_type_id = bpf_map__btf_key_type_id(map);
		c.options.btf_value_type_id = bpf_map__btf_value_type_id(map);
		error = create_in_root(&c);
	}
	if (error >= 0) {
		int fd = error;

		error = bpf_map__reuse_fd(map, fd);
		close(fd);
	}
	btf__free(types);
	return error;
}
