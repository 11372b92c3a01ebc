/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The sender of a query: the cgroup of the packet's socket, and the current task. Egress usually runs in the sender's own
 * call.
 */
#include "enrolment.h"
#include "kernel.h"

#define ASKER_NSEC_PER_TICK 10000000 /* USER_HZ is 100 on every architecture */

/*
 * The agent looks up endpoints, which are often called as their service is: it must get other answers than the mesh's.
 * A packet that was delayed is sent by whoever runs then, so its socket has to be of the agent's cgroup, too.
 */
static __always_inline bool is_agents_query(struct __sk_buff *skb)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 tgid = BPF_CORE_READ(task, tgid);
	__u64 *start = bpf_map_lookup_elem(&agents, &tgid);

	if (!start || BPF_CORE_READ(task, group_leader, start_boottime) / ASKER_NSEC_PER_TICK != *start)
		return false;
	return task_cgroup() == socket_cgroup(skb);
}

static __always_inline bool is_enrolled_asker(struct __sk_buff *skb)
{
	struct kernfs_node *node = socket_cgroup(skb);

	return node && is_enrolled_cgroup(BPF_CORE_READ(node, id), skb);
}
