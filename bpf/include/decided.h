/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Counts what connect() decides and no socket carries: connections that pass, and that are refused. */
#include "flow-end.h"

#ifdef KMESH_NO_FETCH_ATOMICS
/* Counts the connection that begins as opened: kernels that lack these atomics have no flush. */
__noinline int open_at_once(struct bpf_sock_addr *ctx)
{
	struct socket_state *state;
	struct flow_key key;

	if (!ctx->sk)
		return 0;
	state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
	if (!state || !state->flow)
		return 0;
	key = key_of(state);
	open_flow(&state->progress, &key, FLOW_OUT, state->since_ns);
	return 0;
}
#else
#define open_at_once(ctx)
#endif

/* A connection that went where the app asked to, or that was refused on purpose: `value` is the reason then. */
__noinline int count_decided(__u32 direction, __u32 service, __u32 value, __u64 source)
{
	struct traffic *set = traffic_settings();
	struct flow_key key = {
		.direction = direction,
		.protocol = IPPROTO_TCP,
		.source = source,
		.service = service,
		.endpoint = value,
	};
	struct flow_row *row;
	__u64 now;

	if (!set || !(set->flags & TRAFFIC_COUNT))
		return 0;
	now = bpf_ktime_get_ns();
	row = find_row(&flow_rows, &key, OTHER_OUT, false);
	if (row) {
		__sync_fetch_and_add(&row->opened, 1);
		__sync_fetch_and_add(&row->ends[FLOW_CLOSED], 1);
		*(volatile __u64 *)&row->used_ns = now;
	}
	if (direction == FLOW_REFUSED && set->flags & TRAFFIC_LOG) {
		struct flow_sum none = {};

		log_end(set, &key, &none, NULL, now);
	}
	return 0;
}
