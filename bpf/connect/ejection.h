/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Another slot, where the endpoint of the chosen one is ejected. */
#include "../include/eject.h"
#include "balance.h"

/* Slots that are tried to find an endpoint that is not ejected. Runs no longer than that are searched whole. */
#define EJECTION_RETRIES 32

#define REACHES_V4 1
#define REACHES_V6 2

/* Whether some endpoint of this cluster is ejected, and is to be left out. */
static __always_inline bool leaves_out(const struct settings *set, const struct decision *made,
				       const struct descriptor *desc)
{
	if (!made->load || *(volatile __u64 *)&made->load->ejected_until_ns <= made->now)
		return false;
	return desc->ejection.after || is_stale(set, made->now);
}

/*
 * The slot itself, or another one whose endpoint is not ejected: any, but by hash always the same one. When none is
 * found the slot stays: nothing is refused because of ejections.
 */
__noinline __u32 usable_slot(__u32 first_line, __u32 count, __u32 slot, __u32 seed, __u64 now)
{
	__u32 step, index;

	if (!count || !is_ejected(slot, now))
		return slot;
	step = count <= EJECTION_RETRIES ? 1 : mix(seed, count) % count | 1;
	index = seed % count;
	for (int i = 0; i < EJECTION_RETRIES; i++) {
		__u32 other = slot_of(first_line, index);

		if (!is_ejected(other, now))
			return other;
		index = (index + step) % count;
	}
	return slot;
}

/*
 * The first endpoint of the next priorities that is not ejected, found as usable_slot() does; `slot` when there is none.
 * `families` has a bit for each that the socket can reach.
 */
__noinline __u32 fallback_slot(__u32 fallback, __u32 families, __u32 slot, __u32 seed, __u64 now)
{
	for (int i = 0; i < MAX_FALLBACKS && fallback; i++) {
		struct descriptor *desc = chunked_lookup(&descriptors, fallback);
		struct run run = {};
		__u32 other;

		if (!desc)
			break;
		if (families & REACHES_V6)
			run = desc->v6;
		if (!run.count && families & REACHES_V4)
			run = desc->v4;
		fallback = desc->fallback;
		if (!run.count)
			continue;
		other = usable_slot(run.first_line, run.count, slot_of(run.first_line, seed % run.count), seed, now);
		if (!is_ejected(other, now))
			return other;
	}
	return slot;
}
