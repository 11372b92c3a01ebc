/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Whether a task is governed: by a cgroup above it, or by the name of the systemd unit that it belongs to. A unit that is
 * restarted has another cgroup and the same name, so the agent has nothing to do. The walk up the cgroups happens once for
 * each cgroup; its result is cached.
 */
#include "../maps/enrolled.h"
#include "kernel.h"

/* Deeper cgroups are not governed unless everything is. */
#define MAX_CGROUP_LEVELS 64

/* Reads the unit's name of a cgroup, without systemd's mark. Returns its length with the final zero; 0: not a unit's name. */
static __always_inline __u32 read_unit_name(struct unit_name *unit, const char **name)
{
	long length;

	__builtin_memset(unit, 0, sizeof(*unit));
	length = bpf_probe_read_kernel_str(unit, sizeof(*unit), *name);
	if (length > 0 && unit->byte[0] == '_') {
		/* systemd marks names that the kernel might take for its own files. */
		*name += 1;
		__builtin_memset(unit, 0, sizeof(*unit));
		length = bpf_probe_read_kernel_str(unit, sizeof(*unit), *name);
	}
	return length > 0 && length < (long)sizeof(*unit) ? length : 0;
}

/* `length` includes the name's final zero. */
static __always_inline bool is_slice(const char *name, __u32 length)
{
	const union {
		char text[8];
		__u64 word;
	} suffix = { ".slice" };
	const __u32 size = sizeof(".slice");
	__u64 end = 0;

	if (length <= size || bpf_probe_read_kernel(&end, size, name + length - size))
		return false;
	return end == suffix.word;
}

#define CGROUP_SLICE 1
#define CGROUP_ENROLLED_UNIT 2

/*
 * What the name of a cgroup says, as bits. `node` is the address of its kernfs_node: a global function may take numbers
 * only on 5.10. The verifier checks a global function once, and a static one at each call in each turn of a loop.
 */
__noinline int classify_cgroup(__u64 node)
{
	const char *name = BPF_CORE_READ((struct kernfs_node *)node, name);
	struct unit_name unit;
	__u32 length = read_unit_name(&unit, &name);
	int bits = 0;

	if (is_slice(name, length))
		bits |= CGROUP_SLICE;
	if (length && bpf_map_lookup_elem(&units, &unit))
		bits |= CGROUP_ENROLLED_UNIT;
	return bits;
}

/*
 * Slices lie in slices, units in the innermost slice. What lies below a unit is its own affair: the units of a container
 * or of a user are not the machine's, whatever their names are. `node` as above.
 */
__noinline int find_enrolment(__u64 node, __u64 root)
{
	int by_name = 0;

	for (int i = 0; node && i < MAX_CGROUP_LEVELS; i++) {
		__u64 id = BPF_CORE_READ((struct kernfs_node *)node, id);
		int bits;

		if (bpf_map_lookup_elem(&enrolled, &id))
			return 1;
		if (id == root)
			return by_name;
		bits = classify_cgroup(node);
		if (!(bits & CGROUP_SLICE))
			by_name = 0;
		if (bits & CGROUP_ENROLLED_UNIT)
			by_name = 1;
		node = (__u64)kernfs_parent((struct kernfs_node *)node);
	}
	return 0;
}

static __always_inline struct kernfs_node *task_cgroup(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn);
}

/* The cgroup in which a socket, or its listener, was made; NULL when the socket does not say it. */
static __always_inline struct kernfs_node *cgroup_of(const struct sock *sk)
{
	struct cgroup *cgroup;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	} else {
		struct sock_cgroup_data___5_15 *data = (void *)&sk->sk_cgrp_data;

		cgroup = (struct cgroup *)BPF_CORE_READ(data, val);
		if ((__u64)cgroup & 1)
			return NULL;
	}
	return BPF_CORE_READ(cgroup, kn);
}

/* The same for a packet's socket. */
static __always_inline struct kernfs_node *socket_cgroup(struct __sk_buff *skb)
{
	struct sock *sk = BPF_CORE_READ((struct sk_buff *)skb, sk);

	return sk ? cgroup_of(sk) : NULL;
}

/* Whether the cgroup `id` is governed; `skb` is the packet that it sent, or NULL when it is the current task's. */
static __always_inline bool is_enrolled_cgroup(__u64 id, struct __sk_buff *skb)
{
	__u64 fresh, word, node, *verdict;
	struct enrolment *current;
	__u32 at = 0;

	current = bpf_map_lookup_elem(&enrolment, &at);
	at = id % VERDICT_COUNT;
	verdict = bpf_map_lookup_elem(&verdicts, &at);
	if (!current || !verdict)
		return false;
	/* Read the epoch before the maps: a change in between makes the cached result invalid. */
	fresh = id << 16 | (*(volatile __u64 *)&current->epoch & 0x7fff) << 1;
	word = *(volatile __u64 *)verdict;
	if ((word ^ fresh) > 1) {
		node = (__u64)(skb ? socket_cgroup(skb) : task_cgroup());
		word = fresh | (find_enrolment(node, current->root) & 1);
		*(volatile __u64 *)verdict = word;
	}
	return word & 1;
}
