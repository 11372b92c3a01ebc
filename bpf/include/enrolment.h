/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Whether the current task is governed: by a cgroup above it, or by the name of the systemd unit that it belongs to. A
 * unit that is started anew has another cgroup and the same name, so nobody need tell us. The names on the way up are
 * read once a cgroup, and what they say is kept.
 */
#include "enrolled.h"
#include "kernel.h"

/* Deeper cgroups are not governed unless everything is. */
#define MAX_CGROUP_LEVELS 64

/* The unit's name that a cgroup's folder stands for. Gives its length with the final zero; 0 for what names no unit. */
static __always_inline __u32 read_unit_name(struct unit_name *unit, const char **name)
{
	long length;

	__builtin_memset(unit, 0, sizeof(*unit));
	length = bpf_probe_read_kernel_str(unit, sizeof(*unit), *name);
	if (length > 0 && unit->byte[0] == '_') {
		/* systemd's own mark before names that the kernel might take for its files. */
		*name += 1;
		__builtin_memset(unit, 0, sizeof(*unit));
		length = bpf_probe_read_kernel_str(unit, sizeof(*unit), *name);
	}
	return length > 0 && length < (long)sizeof(*unit) ? length : 0;
}

/* `length` is that of the name with its final zero. */
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

/*
 * Slices lie in slices, units in the innermost of them. What lies below a unit is its own affair: a container's units,
 * or a user's, are not the machine's, whatever their names are.
 */
static __noinline int find_enrolment(struct kernfs_node *node, __u64 root)
{
	struct unit_name unit;
	int by_name = 0;

	for (int i = 0; node && i < MAX_CGROUP_LEVELS; i++) {
		__u64 id = BPF_CORE_READ(node, id);
		const char *name;
		__u32 length;

		if (bpf_map_lookup_elem(&enrolled, &id))
			return 1;
		if (id == root)
			return by_name;
		name = BPF_CORE_READ(node, name);
		length = read_unit_name(&unit, &name);
		if (!is_slice(name, length))
			by_name = 0;
		if (length && bpf_map_lookup_elem(&units, &unit))
			by_name = 1;
		node = kernfs_parent(node);
	}
	return 0;
}

static __always_inline struct kernfs_node *task_cgroup(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn);
}

/* The cgroup in which a packet's socket was made; NULL when that can't be told. */
static __always_inline struct kernfs_node *socket_cgroup(struct __sk_buff *skb)
{
	struct sock *sk = BPF_CORE_READ((struct sk_buff *)skb, sk);
	struct cgroup *cgroup;

	if (!sk)
		return NULL;
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

/* Whether the cgroup `id` is governed; `skb` is the packet that it sent, or NULL when it is the current task's. */
static __always_inline bool is_enrolled_cgroup(__u64 id, struct __sk_buff *skb)
{
	__u64 fresh, word, *verdict;
	struct enrolment *current;
	__u32 at = 0;

	current = bpf_map_lookup_elem(&enrolment, &at);
	at = id % VERDICT_COUNT;
	verdict = bpf_map_lookup_elem(&verdicts, &at);
	if (!current || !verdict)
		return false;
	/* Before the maps are read: a verdict that a change overtakes is then nobody's. */
	fresh = id << 16 | (*(volatile __u64 *)&current->epoch & 0x7fff) << 1;
	word = *(volatile __u64 *)verdict;
	if ((word ^ fresh) > 1) {
		word = fresh | find_enrolment(skb ? socket_cgroup(skb) : task_cgroup(), current->root);
		*(volatile __u64 *)verdict = word;
	}
	return word & 1;
}
