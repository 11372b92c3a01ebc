/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Counts connections that this machine accepted, at their end. No hook sees their beginning: a table of served ports tells
 * them, and `accepted` those that the agent's walk has seen.
 */
#include "carried.h"
#include "flow-end.h"
#include "served.h"
#include "socket.h"
#include "walk.h"

static __always_inline bool is_in_governed_netns(struct bpf_sock *ctx)
{
	__u32 zero = 0;
	const struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set && in_governed_netns(ctx, set);
}

/* Marks that the end is counted, and gives what was counted before. */
static __always_inline __u32 take_end(struct accepted_flow *flow)
{
#ifdef KMESH_NO_FETCH_ATOMICS
	/* Nothing else counts on these kernels. */
	__u32 before = flow->progress.flow;

	flow->progress.flow = FLOW_ENDED;
	return before;
#else
	return __sync_lock_test_and_set(&flow->progress.flow, FLOW_ENDED);
#endif
}

/*
 * An accepted connection has ended. One that the agent's walk came by is settled; one that it did not see is counted now as
 * a whole. The walk and this never count the same one: see see_accepted in flush.bpf.c.
 */
__noinline int count_accepted(struct bpf_sock *ctx, __u32 tcp_state)
{
	const struct sock *sk = (const struct sock *)ctx;
	struct traffic *set = traffic_settings();
	struct accepted_flow *flow = NULL;
	struct facts facts;
	struct flow_sum sum = {};
	/* No constant of its own: that would be a map. */
	struct flow_key key = {};
	struct caller_key tunnel = {};
	__u32 before = FLOW_NONE;
	struct flow_row *row;
	bool is_carried;
	__u64 now;

	if (!set || tcp_state == BPF_TCP_LISTEN || tcp_state == BPF_TCP_SYN_SENT)
		return 0;
	if (set->flags & TRAFFIC_ACCEPTED)
		flow = bpf_sk_storage_get(&accepted, ctx, NULL, 0);
	if (flow) {
		before = take_end(flow);
		if (before == FLOW_ENDED)
			return 0;
	}
	key.direction = FLOW_IN;
	key.protocol = IPPROTO_TCP;
	if (before == FLOW_NONE) {
		key.port = local_port(sk);
		if (!(set->flags & TRAFFIC_SERVED) || !is_served(key.port) || is_tunnels(ctx) ||
		    !is_in_governed_netns(ctx))
			return 0;
		key.source = current_source();
	} else {
		key.port = flow->port;
		key.source = flow->progress.source;
	}
	key.remote = remote_address(sk);
	is_carried = is_own_address(sk, &key.remote) && find_carried(sk, key.port, &tunnel, &key.remote);
	if (flow && before != FLOW_NONE)
		key.remote = flow->remote;
	read_facts(sk, &facts);
	if (!facts.max_window)
		return 0;
	now = bpf_ktime_get_ns();
	sum.end = end_of(ctx, tcp_state, 0, 0) & (FLOW_ENDS - 1);
	find_bytes(tcp_state, &facts, &sum);
	row = row_of(&key, before, FLOW_IN);
	if (row) {
		if (before == FLOW_NONE || before == FLOW_BEGUN)
			__sync_fetch_and_add(&row->opened, 1);
		if (before == FLOW_NONE) {
			__sync_fetch_and_add(&row->sent, sum.sent);
			__sync_fetch_and_add(&row->received, sum.received);
			__sync_fetch_and_add(&row->retransmits, sum.retransmits);
		} else {
			add_progress(row, &flow->progress, &sum);
		}
		add_end(row, &sum, 0, now);
		count_latency(key.source, bpf_ntohs(key.port), FLOW_IN, sum.rtt_us, 0);
	}
	if (set->flags & TRAFFIC_LOG)
		log_end(set, &key, &sum, NULL, now);
	/* Only now: an agent that finds neither entry nor row forgets the caller's name. */
	if (is_carried)
		bpf_map_delete_elem(&carried, &tunnel);
	return 0;
}
