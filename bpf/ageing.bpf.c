// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Marks rows that the agent is about to move into retired_rows, so that no program begins to count in them: user space can't
 * change one word of a hash's value without replacing the whole, which would lose what is added meanwhile. After the next
 * grace period a marked row without a live connection changes no more.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps/traffic.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_iter__bpf_map_elem {
	void *key;
	void *value;
};

#pragma clang attribute pop

/* flow_key -> 1: this row is chosen. Written by the agent before each walk; belongs to one agent alone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_FLOW_ROWS);
	__type(key, struct flow_key);
	__type(value, __u32);
} chosen SEC(".maps");

/* Over flow_rows or caller_rows: marks the rows that are chosen, and takes the mark from all others. */
SEC("iter/bpf_map_elem")
int mark_rows(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct flow_key *key = ctx->key;
	struct flow_row *row = ctx->value;
	struct flow_key copy;
	__u32 mark;

	if (!key || !row)
		return 0;
	copy = *key;
	mark = bpf_map_lookup_elem(&chosen, &copy) ? 1 : 0;
	if (row->retiring != mark)
		row->retiring = mark;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
