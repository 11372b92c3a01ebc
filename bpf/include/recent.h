/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The connections that were refused or failed last, each with who made it and where it wanted to go. `kmesh status` reads
 * them without an agent. Part of keep/: no layout here ever changes.
 */
#include "../maps/keep.h"
#include "source.h"

#define RECENT_COUNT 64

enum recent_kind {
	RECENT_REFUSED = 1, /* by us, on purpose */
	RECENT_FAILED = 2, /* the endpoint refused or did not answer */
};

struct recent {
	__u64 number; /* 1 for the first ever; 0 while the record is written */
	__u64 at_ns; /* CLOCK_MONOTONIC */
	__u64 source; /* see source.h; 0 = unknown */
	struct address asked;
	struct address endpoint; /* RECENT_FAILED */
	__be16 asked_port;
	__be16 endpoint_port;
	__u8 kind;
	__u8 reason; /* RECENT_REFUSED: enum reason */
	__u16 zero;
	__u32 service;
	__u32 pid; /* thread group; 0 = unknown */
	char command[16]; /* of the task; empty = unknown */
	__u64 reserved[5];
};

/* Number modulo RECENT_COUNT -> record. Written by connect4/6, sock_release and the walk over closed sockets. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RECENT_COUNT);
	__type(key, __u32);
	__type(value, struct recent);
} recent SEC(".maps");

/* [0] -> how many there were. Written with the records. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} recent_number SEC(".maps");

union recent_records {
	struct recent recent;
	enum recent_kind recent_kind;
} recent_records SEC(".layout");

/* The record to fill in, the oldest one. finish_recent() makes it readable. */
static __always_inline struct recent *begin_recent(enum recent_kind kind, __u64 *number)
{
	__u32 zero = 0, at;
	__u64 *count = bpf_map_lookup_elem(&recent_number, &zero);
	struct recent *record;

	if (!count)
		return NULL;
#ifdef KMESH_NO_FETCH_ATOMICS
	/* Two CPUs within these few nanoseconds may get the same record: one connection is missing in the list then. */
	__sync_fetch_and_add(count, 1);
	*number = *(volatile __u64 *)count;
#else
	*number = __sync_fetch_and_add(count, 1) + 1;
#endif
	at = *number % RECENT_COUNT;
	record = bpf_map_lookup_elem(&recent, &at);
	if (!record)
		return NULL;
	*(volatile __u64 *)&record->number = 0;
	barrier();
	__builtin_memset(&record->at_ns, 0, sizeof(*record) - sizeof(record->number));
	record->at_ns = bpf_ktime_get_ns();
	record->kind = kind;
	return record;
}

static __always_inline void finish_recent(struct recent *record, __u64 number)
{
	barrier();
	*(volatile __u64 *)&record->number = number;
}

/* The walk over closed sockets runs as the agent: it knows only what the socket carries. */
static __always_inline void add_task(struct recent *record)
{
#ifndef RUNS_AS_AGENT
	record->pid = bpf_get_current_pid_tgid() >> 32;
	record->source = current_source();
	bpf_get_current_comm(record->command, sizeof(record->command));
#endif
}

static __always_inline void record_failure(const struct socket_state *state)
{
	struct endpoint *endpoint = chunked_lookup(&endpoints, state->endpoint);
	__u64 number;
	struct recent *record = begin_recent(RECENT_FAILED, &number);

	if (!record)
		return;
	add_task(record);
	if (state->flow) {
		record->source = state->source;
		record->pid = state->pid;
	}
	record->asked = state->asked;
	record->asked_port = state->asked_port;
	record->service = state->service;
	if (endpoint) {
		record->endpoint = endpoint->address;
		record->endpoint_port = endpoint->port;
	}
	finish_recent(record, number);
}
