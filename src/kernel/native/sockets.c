// SPDX-License-Identifier: Apache-2.0
/*
 * The TCP or UDP sockets of this network namespace, by sock_diag netlink. The kernel's messages become records of one size, so
 * that a hundred thousand of them cost a few buffers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

/* One answer of the kernel: it fills no more than it is given. */
#define ANSWER (32 * 1024)

/* src/kernel/net/sockets.ts reads it; a storage's value of `value_size` bytes follows, and what brings it to 8. */
struct record {
	uint8_t family;
	uint8_t state;
	uint8_t has_value;
	uint8_t zero;
	uint16_t local_port; /* network byte order, as the addresses; IPv4 is v4-mapped */
	uint16_t remote_port;
	uint32_t inode; /* 0 = no process holds it */
	uint32_t zero2;
	uint8_t local[16];
	uint8_t remote[16];
	uint64_t cookie;
	uint64_t cgroup; /* 0 = not told */
};

struct request {
	struct nlmsghdr head;
	struct inet_diag_req_v2 body;
	struct rtattr storages;
	struct rtattr map;
	uint32_t map_fd;
};

/*
 * Asks for all sockets of one family (AF_INET, AF_INET6) and protocol (IPPROTO_TCP, IPPROTO_UDP) in the states of a mask, with what they hold in the storage map
 * `map` (-1 = nothing). Gives a descriptor for kmesh_sockets_read.
 */
API int kmesh_sockets_open(int family, int protocol, unsigned int states, int map)
{
	struct request request = {
		.head = {
			.nlmsg_len = sizeof(request),
			.nlmsg_type = SOCK_DIAG_BY_FAMILY,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		},
		.body = { .sdiag_family = family, .sdiag_protocol = protocol, .idiag_states = states },
		.storages = { .rta_len = sizeof(request) - offsetof(struct request, storages), .rta_type = INET_DIAG_REQ_SK_BPF_STORAGES },
		.map = { .rta_len = sizeof(request) - offsetof(struct request, map), .rta_type = SK_DIAG_BPF_STORAGE_REQ_MAP_FD },
		.map_fd = map,
	};
	struct timeval patience = { .tv_sec = 5 };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	int error;

	if (fd < 0)
		return -errno;
	if (map < 0)
		request.head.nlmsg_len = offsetof(struct request, storages);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (send(fd, &request, request.head.nlmsg_len, 0) < 0) {
		error = -errno;
		close(fd);
		return error;
	}
	return fd;
}

static void put_address(uint8_t *to, int family, const uint32_t *from)
{
	if (family == AF_INET6) {
		memcpy(to, from, 16);
		return;
	}
	memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	memcpy(to + 12, from, 4);
}

/* The first value in a list of storages: one map was asked for. */
static void put_storage(struct record *record, const struct rtattr *list, uint32_t value_size)
{
	const struct rtattr *storage = RTA_DATA(list);
	int left = RTA_PAYLOAD(list);

	for (; RTA_OK(storage, left); storage = RTA_NEXT(storage, left)) {
		const struct rtattr *part = RTA_DATA(storage);
		int rest = RTA_PAYLOAD(storage);

		if ((storage->rta_type & NLA_TYPE_MASK) != SK_DIAG_BPF_STORAGE)
			continue;
		for (; RTA_OK(part, rest); part = RTA_NEXT(part, rest)) {
			if ((part->rta_type & NLA_TYPE_MASK) != SK_DIAG_BPF_STORAGE_MAP_VALUE ||
			    RTA_PAYLOAD(part) < value_size)
				continue;
			memcpy(record + 1, RTA_DATA(part), value_size);
			record->has_value = 1;
			return;
		}
	}
}

static void put_record(struct record *record, const struct nlmsghdr *message, uint32_t value_size)
{
	const struct inet_diag_msg *socket = NLMSG_DATA(message);
	const struct rtattr *attribute = (const struct rtattr *)(socket + 1);
	int left = message->nlmsg_len - NLMSG_LENGTH(sizeof(*socket));

	memset(record, 0, sizeof(*record) + value_size);
	record->family = socket->idiag_family;
	record->state = socket->idiag_state;
	record->local_port = socket->id.idiag_sport;
	record->remote_port = socket->id.idiag_dport;
	record->inode = socket->idiag_inode;
	put_address(record->local, socket->idiag_family, socket->id.idiag_src);
	put_address(record->remote, socket->idiag_family, socket->id.idiag_dst);
	record->cookie = socket->id.idiag_cookie[0] | (uint64_t)socket->id.idiag_cookie[1] << 32;
	for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
		int type = attribute->rta_type & NLA_TYPE_MASK;

		if (type == INET_DIAG_CGROUP_ID && RTA_PAYLOAD(attribute) == sizeof(record->cgroup))
			memcpy(&record->cgroup, RTA_DATA(attribute), sizeof(record->cgroup));
		if (type == INET_DIAG_SK_BPF_STORAGES)
			put_storage(record, attribute, value_size);
	}
}

/*
 * Fills `records` (each of sizeof(struct record) + value_size bytes) with the next sockets. Gives their number, and
 * sets *done when there are no more. -EMSGSIZE when `size` has no room for one answer of the kernel, ANSWER bytes of its
 * smallest messages.
 */
API int kmesh_sockets_read(int fd, unsigned char *records, unsigned int size, unsigned int value_size,
			   unsigned int *done)
{
	const unsigned int step = sizeof(struct record) + ((value_size + 7) & ~7u);
	const unsigned int most = ANSWER / NLMSG_LENGTH(sizeof(struct inet_diag_msg)) + 1;
	static _Thread_local unsigned char answer[ANSWER] __attribute__((aligned(8)));
	unsigned int room = size / step;
	unsigned int count = 0;

	if (room < most)
		return -EMSGSIZE;
	while (room - count >= most) {
		struct nlmsghdr *message = (struct nlmsghdr *)answer;
		struct iovec part = { .iov_base = answer, .iov_len = sizeof(answer) };
		struct msghdr head = { .msg_iov = &part, .msg_iovlen = 1 };
		int left = recvmsg(fd, &head, 0);

		if (left < 0 && errno == EINTR)
			continue;
		if (left < 0)
			return -errno;
		if (head.msg_flags & MSG_TRUNC)
			return -ENOBUFS;
		for (; NLMSG_OK(message, (unsigned int)left); message = NLMSG_NEXT(message, left)) {
			if (message->nlmsg_type == NLMSG_DONE) {
				int error = message->nlmsg_len >= NLMSG_LENGTH(sizeof(int))
						    ? *(int *)NLMSG_DATA(message)
						    : 0;

				*done = 1;
				return error < 0 ? error : (int)count;
			}
			if (message->nlmsg_type == NLMSG_ERROR)
				return ((struct nlmsgerr *)NLMSG_DATA(message))->error ?: -EPROTO;
			if (message->nlmsg_type == SOCK_DIAG_BY_FAMILY)
				put_record((struct record *)(records + count++ * step), message, value_size);
		}
	}
	return count;
}

/*
 * Ends a TCP socket of this network namespace: its peer gets a RST, its app ECONNABORTED. `socket` is a record, whose cookie
 * names it, so that another one at the same addresses is never meant. -ENOENT when it is gone, -EOPNOTSUPP when the
 * kernel was built without CONFIG_INET_DIAG_DESTROY.
 */
API int kmesh_socket_destroy(const unsigned char *bytes)
{
	const struct record *socket_of = (const struct record *)bytes;
	const int v4 = socket_of->family == AF_INET;
	struct {
		struct nlmsghdr head;
		struct inet_diag_req_v2 body;
	} request = {
		.head = {
			.nlmsg_len = sizeof(request),
			.nlmsg_type = SOCK_DESTROY,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
		},
		.body = {
			.sdiag_family = socket_of->family,
			.sdiag_protocol = IPPROTO_TCP,
			.idiag_states = ~0u,
			.id = {
				.idiag_sport = socket_of->local_port,
				.idiag_dport = socket_of->remote_port,
				.idiag_cookie = { (uint32_t)socket_of->cookie, (uint32_t)(socket_of->cookie >> 32) },
			},
		},
	};
	struct timeval patience = { .tv_sec = 5 };
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		unsigned char rest[256];
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	ssize_t size;
	int error;

	if (fd < 0)
		return -errno;
	memcpy(request.body.id.idiag_src, socket_of->local + (v4 ? 12 : 0), v4 ? 4 : 16);
	memcpy(request.body.id.idiag_dst, socket_of->remote + (v4 ? 12 : 0), v4 ? 4 : 16);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	error = send(fd, &request, sizeof(request), 0) < 0 ? -errno : 0;
	if (!error) {
		size = recv(fd, &answer, sizeof(answer), 0);
		if (size < 0)
			error = -errno;
		else if (size < (ssize_t)NLMSG_LENGTH(sizeof(int)) || answer.head.nlmsg_type != NLMSG_ERROR)
			error = -EPROTO;
		else
			error = answer.error.error;
	}
	close(fd);
	return error;
}

/* Adds to a number that programs add to as well. */
API void kmesh_add(long *number, long change)
{
	__atomic_fetch_add(number, change, __ATOMIC_SEQ_CST);
}
