/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Counts what connect() decides and no socket carries: connections that pass, and that are refused. */
#include "flow-end.h"

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
	row = find_row(&flow_rows, &key, OTHER_OUT);
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
