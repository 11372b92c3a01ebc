/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* The maps of keep.h that say who is governed and who never is: programs of connections and of names read them. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* Thread group id -> its start in clock ticks since boot: agents, whose own connections are never governed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} agents SEC(".maps");

/* Cgroup id -> 1: this cgroup and all below it are governed. Written by the agent, few entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} enrolled SEC(".maps");

/* A systemd unit's name, then zeros: two at least, by which a name that was cut off is told. */
struct unit_name {
	char byte[128];
};

/* Name -> 1: the processes of this unit are governed, whichever cgroup it has just now. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct unit_name);
	__type(value, __u64);
} units SEC(".maps");

struct enrolment {
	__u64 epoch; /* another one with each change of `enrolled` or `units`, a grace period after it */
	__u64 root; /* id of the cgroup that units are looked for below: where the hooks hang */
	__u64 reserved[6];
};

/* [0] -> what `verdicts` are good for. Written by the agent, read at every connect. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct enrolment);
} enrolment SEC(".maps");

#define VERDICT_COUNT 16384

/*
 * Cgroup id, its low bits -> whether it is governed, as was found last: id in bits 16-63, epoch in bits 1-15, and the
 * verdict. Cgroup ids are never given twice. Written by connect4/6 with one store.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, VERDICT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");
