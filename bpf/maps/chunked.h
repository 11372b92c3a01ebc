/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * A table with dense ids. It grows and never moves a record: it is an array of maps whose inner arrays double in size.
 * Chunk k holds the ids [CHUNK_BASE * (2^k - 1), CHUNK_BASE * (2^(k+1) - 1)). The agent writes the inner arrays through
 * mmap. It fills a record while no reader uses its id, then publishes the id with one 8-byte store in another table.
 *
 * BPF_F_INNER_MAP (Linux 5.10) lets inner arrays of different sizes share one outer map.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define CHUNK_BASE_SHIFT 8
#define CHUNK_BASE (1u << CHUNK_BASE_SHIFT)
/* 2^8 * (2^20 - 1) ids: memory runs out first. */
#define CHUNK_COUNT 20

/*
 * Inner maps declare sizes, not types. Linux 5.15 to 6.2 accepts an inner map only if its type information equals that of
 * the first one, and the agent creates the later ones without any.
 */
/* clang-format off */
#define CHUNKED(record)                                                        \
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                              \
	__uint(max_entries, CHUNK_COUNT);                                      \
	__type(key, __u32);                                                    \
	__array(values, struct {                                               \
		__uint(type, BPF_MAP_TYPE_ARRAY);                              \
		__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);           \
		__uint(max_entries, CHUNK_BASE);                               \
		__uint(key_size, sizeof(__u32));                               \
		__uint(value_size, sizeof(record));                            \
	})
/* clang-format on */

static __always_inline __u32 floor_log2(__u32 value)
{
	__u32 result = (value > 0xffff) << 4;
	__u32 shift;

	value >>= result;
	shift = (value > 0xff) << 3;
	value >>= shift;
	result |= shift;
	shift = (value > 0xf) << 2;
	value >>= shift;
	result |= shift;
	shift = (value > 0x3) << 1;
	value >>= shift;
	result |= shift;
	return result | (value >> 1);
}

/* The record with this id, or NULL when its chunk does not exist. `table` must be a map, not a pointer variable. */
static __always_inline void *chunked_lookup(void *table, __u32 id)
{
	__u32 chunk = 0, offset = id;
	void *records;

	/* Most ids are small, and the rest takes about twenty instructions. */
	if (id >= CHUNK_BASE) {
		__u32 place = id + CHUNK_BASE;
		__u32 level = floor_log2(place);

		chunk = level - CHUNK_BASE_SHIFT;
		offset = place - (1u << level);
	}
	records = bpf_map_lookup_elem(table, &chunk);
	if (!records)
		return NULL;
	return bpf_map_lookup_elem(records, &offset);
}
