// SPDX-License-Identifier: Apache-2.0
/* Iterators over socket storage, and ring buffers: what libbpf wraps in callbacks, as calls that a foreign-function runtime can make. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bpf/bpf.h>

#define API __attribute__((visibility("default")))

/* A link of the iterator program over a socket storage map, or over TCP sockets (`map` -1); it visits nothing yet. */
API int kmesh_iterator_attach(int program, int map)
{
	union bpf_iter_link_info info = { .map = { .map_fd = map } };
	LIBBPF_OPTS(bpf_link_create_opts, options, .iter_info = &info, .iter_info_len = sizeof(info.map));

	if (map < 0)
		return bpf_link_create(program, 0, BPF_TRACE_ITER, NULL);
	return bpf_link_create(program, 0, BPF_TRACE_ITER, &options);
}

/* bpf_iter_create() takes the calling thread's network namespace: it is another one for so long. */
static int create_in(int link, int netns)
{
	int own, fd, error = 0;

	own = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (own < 0)
		return -errno;
	if (setns(netns, CLONE_NEWNET)) {
		error = -errno;
		close(own);
		return error;
	}
	fd = bpf_iter_create(link);
	if (setns(own, CLONE_NEWNET))
		abort(); /* Nothing that this thread does would be where it belongs. */
	close(own);
	return fd;
}

/*
 * A descriptor of one visit to everything, for the caller to close. An iterator over TCP sockets visits those of the network
 * namespace `netns`, a descriptor, or of the calling thread's (-1).
 */
API int kmesh_iterator_begin(int link, int netns)
{
	return netns < 0 ? bpf_iter_create(link) : create_in(link, netns);
}

/* Visits on until the program writes a byte, which is thrown away, and gives 1; 0 when everything was visited. */
API int kmesh_iterator_go_on(int visit)
{
	char byte;

	for (;;) {
		int result = read(visit, &byte, sizeof(byte));

		if (result >= 0)
			return result;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	}
}

/* A ring buffer map, mapped: see Documentation/bpf/ringbuf.rst. */
struct ring {
	unsigned long size;
	unsigned long *consumer;
	unsigned long *producer; /* the data follows a page later, twice */
	unsigned char *data;
	unsigned long page;
};

API int kmesh_ring_open(int map, unsigned int size, unsigned long *handle)
{
	struct ring *ring = calloc(1, sizeof(*ring));
	int error;

	if (!ring)
		return -ENOMEM;
	ring->page = sysconf(_SC_PAGESIZE);
	ring->size = size;
	ring->consumer = mmap(NULL, ring->page, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
	if (ring->consumer == MAP_FAILED)
		goto failed;
	ring->producer = mmap(NULL, ring->page + 2 * ring->size, PROT_READ, MAP_SHARED, map, ring->page);
	if (ring->producer == MAP_FAILED) {
		error = errno;
		munmap(ring->consumer, ring->page);
		errno = error;
		goto failed;
	}
	ring->data = (unsigned char *)ring->producer + ring->page;
	*handle = (unsigned long)ring;
	return 0;
failed:
	error = -errno;
	free(ring);
	return error;
}

/*
 * Copies the next records, each of which has `record` bytes, as long as they fit, and gives their room back to the kernel.
 * Gives their number; records of another size are skipped.
 */
API int kmesh_ring_read(unsigned long handle, unsigned char *bytes, unsigned int room, unsigned int record)
{
	struct ring *ring = (struct ring *)handle;
	unsigned long at = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
	unsigned long end = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
	int count = 0;

	while (at < end && (count + 1u) * record <= room) {
		const uint32_t *head = (const uint32_t *)(ring->data + (at & (ring->size - 1)));
		uint32_t length = __atomic_load_n(head, __ATOMIC_ACQUIRE);

		if (length & BPF_RINGBUF_BUSY_BIT)
			break;
		if (!(length & BPF_RINGBUF_DISCARD_BIT) && length == record)
			memcpy(bytes + (unsigned long)count++ * record, head + 2, record);
		length &= ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		at += (length + BPF_RINGBUF_HDR_SZ + 7) & ~7ul;
		__atomic_store_n(ring->consumer, at, __ATOMIC_RELEASE);
	}
	return count;
}

API void kmesh_ring_close(unsigned long handle)
{
	struct ring *ring = (struct ring *)handle;

	munmap(ring->producer, ring->page + 2 * ring->size);
	munmap(ring->consumer, ring->page);
	free(ring);
}
