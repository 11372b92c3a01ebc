/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Identifies an agent by its pid and start time, both in the initial namespaces. No two processes have both in common. */
#include "kernel.h"

#define NSEC_PER_TICK 10000000 /* USER_HZ is 100 on every architecture */

/* The start of a task's process in clock ticks since boot: field 22 of /proc/PID/stat in the initial time namespace. */
static __always_inline __u64 start_ticks(struct task_struct *task)
{
	return BPF_CORE_READ(task, group_leader, start_boottime) / NSEC_PER_TICK;
}
