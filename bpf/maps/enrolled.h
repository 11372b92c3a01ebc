/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* The maps of keep.h that say who is governed and who is exempt. The programs for connections and for names read them. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/*
 * Thread group id -> its start in clock ticks since boot. These are agents: their own connections are never governed. Each
 * agent writes its own entry. Fixed size.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} agents SEC(".maps");

/* Cgroup id -> 1: this cgroup and all below it are governed. Written by the agent, read by connect4/6. Few entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} enrolled SEC(".maps");

/* A systemd unit's name, then at least two zeros: a name that was cut off has only one. */
struct unit_name {
	char byte[128];
};

/* Unit name -> 1: the unit's processes are governed, whichever cgroup the unit has. Written by the agent. Few entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct unit_name);
	__type(value, __u64);
} units SEC(".maps");

struct enrolment {
	__u64 epoch; /* changes one grace period after each change of `enrolled` or `units` */
	__u64 root; /* id of the cgroup where the hooks are attached: units are searched below it */
	__u64 reserved[6];
};

/* [0] -> the epoch for which `verdicts` are valid, and the root. Written by the agent, read at every connect. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct enrolment);
} enrolment SEC(".maps");

#define VERDICT_COUNT 16384

/*
 * The cache of enrolment: low bits of a cgroup's id -> id in bits 16-63, epoch in bits 1-15, and in bit 0 whether the cgroup
 * is governed. The kernel never reuses a cgroup id. Written by connect4/6 with one store. Fixed size.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, VERDICT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");
