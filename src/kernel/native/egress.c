// SPDX-License-Identifier: Apache-2.0
/*
 * Programs at the egress of network interfaces, and the interfaces of this network namespace. Each function gives its
 * result or -errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define API __attribute__((visibility("default")))

#ifndef BPF_F_BEFORE
#define BPF_F_BEFORE (1U << 3)
#endif
/* enum bpf_attach_type, from 6.6 on. */
#define TCX_EGRESS 47

/* Before all others at the hook, which still run. The result is the link's fd; -EINVAL before 6.6. */
API int kmesh_tcx_attach(int program, int ifindex)
{
	LIBBPF_OPTS(bpf_link_create_opts, options, .flags = BPF_F_BEFORE);
	int fd = bpf_link_create(program, ifindex, TCX_EGRESS, &options);

	return fd < 0 ? -errno : fd;
}

/*
 * A filter of the clsact qdisc, which is made if need be: the program is attached until somebody removes it. What is
 * there under the same handle and priority is replaced at once.
 */
API int kmesh_clsact_attach(int program, int ifindex, unsigned int handle, unsigned int priority)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = BPF_TC_EGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .prog_fd = program, .handle = handle, .priority = priority,
		    .flags = BPF_TC_F_REPLACE);
	int error = bpf_tc_hook_create(&hook);

	if (error && error != -EEXIST)
		return error;
	return bpf_tc_attach(&hook, &options);
}

/* Gives the id of the filter's program; 0 when there is no such filter. */
API int kmesh_clsact_program(int ifindex, unsigned int handle, unsigned int priority)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = BPF_TC_EGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .handle = handle, .priority = priority);
	int error = bpf_tc_query(&hook, &options);

	if (error == -ENOENT || error == -EINVAL)
		return 0;
	return error ? error : (int)options.prog_id;
}

/* The qdisc stays: others may have filters there. */
API int kmesh_clsact_detach(int ifindex, unsigned int handle, unsigned int priority)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = BPF_TC_EGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .handle = handle, .priority = priority);

	return bpf_tc_detach(&hook, &options);
}

/*
 * Runs a program over a packet. `context` is a struct __sk_buff of `context_size` bytes, in and out; what became of the
 * packet goes to `out`, its length to *out_size, which holds the room before.
 */
API int kmesh_test_packet(int program, const void *packet, unsigned int size, void *context, unsigned int context_size,
			  void *out, unsigned int *out_size, unsigned int *result)
{
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet, .data_size_in = size, .data_out = out,
		    .data_size_out = *out_size, .ctx_in = context, .ctx_size_in = context_size, .ctx_out = context,
		    .ctx_size_out = context_size, .repeat = 1);
	int error = bpf_prog_test_run_opts(program, &options);

	*out_size = options.data_size_out;
	*result = options.retval;
	return error;
}

/* src/kernel/net/interfaces.ts reads it. */
struct interface {
	uint32_t index;
	uint32_t flags;
	uint16_t type; /* ARPHRD_... */
	uint16_t enslaved; /* to a bridge, bond or team: its packets pass the master first */
	char name[20];
};

static void read_link(const struct nlmsghdr *head, struct interface *found)
{
	const struct ifinfomsg *info = NLMSG_DATA(head);
	int size = IFLA_PAYLOAD(head);

	memset(found, 0, sizeof(*found));
	found->index = info->ifi_index;
	found->flags = info->ifi_flags;
	found->type = info->ifi_type;
	for (const struct rtattr *part = IFLA_RTA(info); RTA_OK(part, size); part = RTA_NEXT(part, size)) {
		if (part->rta_type == IFLA_IFNAME)
			strncpy(found->name, RTA_DATA(part), sizeof(found->name) - 1);
		if (part->rta_type == IFLA_MASTER)
			found->enslaved |= 1;
		if ((part->rta_type & NLA_TYPE_MASK) == IFLA_LINKINFO) {
			int left = RTA_PAYLOAD(part);

			for (const struct rtattr *more = RTA_DATA(part); RTA_OK(more, left);
			     more = RTA_NEXT(more, left))
				if (more->rta_type == IFLA_INFO_SLAVE_KIND && !strcmp(RTA_DATA(more), "vrf"))
					found->enslaved |= 2;
		}
	}
	/* Of a VRF both the port and the VRF's own device send. */
	found->enslaved = found->enslaved == 1;
}

static int netlink(unsigned int groups, int flags)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = groups };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, NETLINK_ROUTE);
	int error;

	if (fd < 0)
		return -errno;
	if (!bind(fd, (struct sockaddr *)&address, sizeof(address)))
		return fd;
	error = -errno;
	close(fd);
	return error;
}

/* Lists the interfaces of this thread's network namespace, `room` at most. Gives how many there are, which may be more. */
API int kmesh_interfaces(struct interface *list, unsigned int room)
{
	struct {
		struct nlmsghdr head;
		struct ifinfomsg body;
	} request = {
		.head = { .nlmsg_len = sizeof(request),
			  .nlmsg_type = RTM_GETLINK,
			  .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
	};
	static __thread char answer[32 * 1024] __attribute__((aligned(8)));
	int fd = netlink(0, 0), size, done = 0, error = 0;
	unsigned int count = 0;

	if (fd < 0)
		return fd;
	if (send(fd, &request, sizeof(request), 0) < 0)
		error = -errno;
	while (!error && !done) {
		size = recv(fd, answer, sizeof(answer), 0);
		if (size < 0) {
			error = errno == EINTR ? 0 : -errno;
			continue;
		}
		for (struct nlmsghdr *head = (void *)answer; NLMSG_OK(head, (unsigned int)size);
		     head = NLMSG_NEXT(head, size)) {
			if (head->nlmsg_type == NLMSG_DONE)
				done = 1;
			else if (head->nlmsg_type == NLMSG_ERROR)
				error = ((struct nlmsgerr *)NLMSG_DATA(head))->error ?: -EIO;
			else if (head->nlmsg_type == RTM_NEWLINK) {
				if (count < room)
					read_link(head, &list[count]);
				count++;
			}
		}
	}
	close(fd);
	return error ? error : (int)count;
}

/* A descriptor that hears of interfaces that come, go or change, for kmesh_interfaces_changed. */
API int kmesh_interfaces_watch(void)
{
	return netlink(RTMGRP_LINK, SOCK_NONBLOCK);
}

/* Whether something was heard since the last call; 1 too when so much was that some of it is lost. Does not wait. */
API int kmesh_interfaces_changed(int fd)
{
	char message[4096];
	int changed = 0;

	for (int i = 0; i < 1024; i++) {
		if (recv(fd, message, sizeof(message), 0) >= 0 || errno == ENOBUFS)
			changed = 1;
		else if (errno == EAGAIN)
			break;
		else if (errno != EINTR)
			return -errno;
	}
	return changed;
}
