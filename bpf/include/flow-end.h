/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* The end of a connection is counted: how much, how long, and how it came about. */
#include "facts.h"
#include "flow.h"

#define DURATION_UNIT_NS 256000

static __always_inline __u32 bucket_of(__u64 value)
{
	__u32 bits = value >> 32 ? 32 : value ? floor_log2(value) + 1 : 0;

	return bits < LATENCY_BUCKETS ? bits : LATENCY_BUCKETS - 1;
}

__noinline int count_latency(__u64 source, __u32 service, __u32 direction, __u32 rtt_us, __u64 duration_ns)
{
	struct latency_key key = { .source = source, .service = service, .direction = direction };
	struct latency_row *row = bpf_map_lookup_elem(&latency_rows, &key);
	__u32 at = 0;

	if (!row) {
		row = bpf_map_lookup_elem(&latency_blank, &at);
		if (!row)
			return 0;
		bpf_map_update_elem(&latency_rows, &key, row, BPF_NOEXIST);
		row = bpf_map_lookup_elem(&latency_rows, &key);
		if (!row)
			return 0;
	}
	if (rtt_us) {
		at = bucket_of(rtt_us);
		/* One register for the check and the use: 5.10 forgets the bound else. */
		barrier_var(at);
		if (at < LATENCY_BUCKETS)
			__sync_fetch_and_add(&row->rtt[at], 1);
	}
	if (duration_ns) {
		at = bucket_of(duration_ns / DURATION_UNIT_NS);
		barrier_var(at);
		if (at < LATENCY_BUCKETS)
			__sync_fetch_and_add(&row->duration[at], 1);
	}
	return 0;
}

static __always_inline void add_end(struct flow_row *row, const struct flow_sum *sum, __u64 duration_ns, __u64 now)
{
	__u32 end = sum->end;

	barrier_var(end);
	if (end < FLOW_ENDS)
		__sync_fetch_and_add(&row->ends[end], 1);
	if (sum->failed_ns)
		__sync_fetch_and_add(&row->failed_ns, sum->failed_ns);
	if (duration_ns)
		__sync_fetch_and_add(&row->duration_ns, duration_ns);
	if (sum->rtt_us) {
		__sync_fetch_and_add(&row->rtt_us, sum->rtt_us);
		__sync_fetch_and_add(&row->rtts, 1);
	}
	*(volatile __u64 *)&row->used_ns = now;
}

/* What the flush has not added yet. */
static __always_inline void add_progress(struct flow_row *row, struct flow_progress *progress,
					 const struct flow_sum *sum)
{
	add_to(&row->sent, advance(&progress->sent, sum->sent));
	add_to(&row->received, advance(&progress->received, sum->received));
	add_to(&row->retransmits, advance32(&progress->retransmits, sum->retransmits));
}

static __noinline int log_end(struct traffic *set, const struct flow_key *key, const struct flow_sum *sum,
			      const struct socket_state *state, __u64 now)
{
	struct flow_record *record = bpf_ringbuf_reserve(&traffic_log, sizeof(*record), 0);

	if (!record) {
		__sync_fetch_and_add(&set->unlogged, 1);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->at_ns = now;
	record->sent = sum->sent;
	record->received = sum->received;
	record->key = *key;
	record->end = sum->end;
	record->retransmits = sum->retransmits;
	record->rtt_us = sum->rtt_us;
	if (state) {
		record->since_ns = state->since_ns;
		record->asked = state->asked;
		record->asked_port = state->asked_port;
		record->pid = state->pid;
	} else {
		record->pid = bpf_get_current_pid_tgid() >> 32;
	}
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline void find_sum(FLOW_CONTEXT *ctx, __u32 tcp_state, struct flow_sum *sum)
{
#ifdef FLOW_AT_CONNECT
	/* It had no bytes, or AF_UNSPEC has cleared them. */
	sum->retransmits = BPF_CORE_READ((const struct tcp_sock *)socket_of(ctx), total_retrans);
#else
	struct facts facts;

	read_facts(socket_of(ctx), &facts);
	find_bytes(tcp_state, &facts, sum);
#endif
}

/* A frame of its own: sock_release's is in the longest chain of calls, which has 512 bytes of stack. */
#ifdef FLOW_AT_CONNECT
#define END_FLOW_OF static __always_inline
#else
#define END_FLOW_OF static __noinline
#endif

/* The connection of the context's socket, which carries `state`, has ended. `tcp_state` is the socket's now. */
END_FLOW_OF int end_flow_of(FLOW_CONTEXT *ctx, struct socket_state *state, __u32 tcp_state)
{
	struct traffic *set = traffic_settings();
	__u64 now, duration_ns = 0;
	struct flow_sum sum = {};
	struct flow_key key;
	struct flow_row *row;
	__u32 end;

	if (!set)
		return 0;
	now = bpf_ktime_get_ns();
	end = end_of(ctx, tcp_state, state->sequence, state->since_ns);
	sum.end = end & (FLOW_ENDS - 1);
	find_sum(ctx, tcp_state, &sum);
	if (end & WAS_ESTABLISHED)
		duration_ns = now - state->since_ns;
	else if (sum.end != FLOW_ABORTED)
		sum.failed_ns = tcp_state == BPF_TCP_SYN_SENT ? now - state->since_ns
							      : busy_ns(socket_of(ctx), state->since_ns);
	key = key_of(state);
	row = open_flow(&state->progress, &key, FLOW_OUT, state->since_ns);
	if (row) {
		add_progress(row, &state->progress, &sum);
		add_end(row, &sum, duration_ns, now);
		count_latency(key.source, key.service, FLOW_OUT, sum.rtt_us, duration_ns);
	}
	state->flow = FLOW_NONE;
	if (set->flags & TRAFFIC_LOG)
		log_end(set, &key, &sum, state, now);
	return 0;
}

#ifdef FLOW_AT_CONNECT
/* The same, verified once for connect4 and connect6. */
__noinline int end_flow(FLOW_CONTEXT *ctx, __u32 tcp_state)
{
	struct socket_state *state;

	if (!STORAGE_OWNER(ctx))
		return 0;
	state = bpf_sk_storage_get(&sockets, STORAGE_OWNER(ctx), NULL, 0);
	if (state && state->flow)
		end_flow_of(ctx, state, tcp_state);
	return 0;
}
#endif
