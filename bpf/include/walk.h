/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Steps through the tables that more than one program takes. */
#include "../maps/tables.h"

/* Whether a socket lies in the network namespace of the agent and its tunnel. */
static __always_inline bool in_own_netns(void *ctx, const struct settings *set)
{
	__u64 own = set->netns;

	if (own == NETNS_UNKNOWN)
		return true;
	if (!own)
		own = bpf_get_netns_cookie(NULL);
	return bpf_get_netns_cookie(ctx) == own;
}

/* Whether a socket's connections are governed and counted. */
static __always_inline bool in_governed_netns(void *ctx, const struct settings *set)
{
	return set->flags & SETTING_EVERY_NETNS || in_own_netns(ctx, set);
}

static __always_inline struct descriptor *descriptor_of(__u32 cluster)
{
	__u64 *word = chunked_lookup(&clusters, cluster);
	__u64 id;

	if (!word)
		return NULL;
	id = *(volatile __u64 *)word;
	if (!id)
		return NULL;
	return chunked_lookup(&descriptors, id);
}

static __always_inline __u32 slot_at(const struct run *run, __u32 index)
{
	struct slot_line *line = chunked_lookup(&slots, run->first_line + index / SLOTS_PER_LINE);

	if (!line)
		return SLOT_REFUSE | REASON_INTERNAL;
	return line->slot[index % SLOTS_PER_LINE];
}
