// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the programs at the hooks call a process: its pid in the initial pid namespace, and its start by the boot's clock.
 * A process in a pid or time namespace of its own reads other numbers in /proc. This program is attached nowhere: a test run
 * calls it as the process that asks.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "include/agent.h"

/* Children of one thread that are looked at. */
#define MAX_CHILDREN 256

enum question {
	QUESTION_TGID = 0,
	QUESTION_START_LOW = 1,
	QUESTION_START_HIGH = 2,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next;
};

struct upid {
	int nr;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct task_struct___family {
	int tgid;
	struct list_head children;
	struct list_head sibling;
	struct pid *thread_pid;
};

#pragma clang attribute pop

/* The pid in the innermost namespace of the task. */
static __always_inline int inner_pid(struct task_struct___family *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 level = BPF_CORE_READ(pid, level);
	int number = 0;

	bpf_core_read(&number, sizeof(number), (void *)&pid->numbers + level * bpf_core_type_size(struct upid));
	return number;
}

/* The child of the current thread with this pid in its namespace, or NULL. */
static __always_inline struct task_struct___family *child_of(struct task_struct___family *parent, int wanted)
{
	struct list_head *head = &parent->children;
	struct list_head *at = BPF_CORE_READ(parent, children.next);

	for (int i = 0; i < MAX_CHILDREN && at && at != head; i++) {
		struct task_struct___family *child =
			(void *)at - bpf_core_field_offset(struct task_struct___family, sibling);

		if (inner_pid(child) == wanted)
			return child;
		at = BPF_CORE_READ(at, next);
	}
	return NULL;
}

/* Arguments: an enum question, and the pid of a child or 0 for the process itself. 0 when there is no such child. */
SEC("raw_tp")
int identify(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct___family *task = (void *)bpf_get_current_task();
	__u64 start;

	if (ctx->args[1])
		task = child_of(task, ctx->args[1]);
	if (!task)
		return 0;
	start = start_ticks((struct task_struct *)task);
	switch (ctx->args[0]) {
	case QUESTION_TGID:
		return BPF_CORE_READ(task, tgid);
	case QUESTION_START_LOW:
		return start;
	case QUESTION_START_HIGH:
		return start >> 32;
	default:
		return 0;
	}
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
