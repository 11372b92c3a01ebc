/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Finds the entry for the name that a query asks for. */
#include "query.h"

#define LOOKUP_RETRIES 4

/* Whether `length` bytes of the question's name, from `offset` on, are those of the entry. */
static __always_inline bool same_name(struct query *q, __u32 offset, __u32 length, struct name_entry *entry)
{
	struct long_name *rest;

	if (entry->length != length)
		return false;
	offset = bound(offset, 0xff);
	for (__u32 i = 0; i < INLINE_NAME / 8; i++) {
		__u64 asked, stored;

		if (i * 8 >= length)
			return true;
		asked = *(__u64 *)(q->name + offset + i * 8);
		stored = *(__u64 *)(entry->name + i * 8);
		asked ^= stored;
		if (length - i * 8 < 8)
			asked <<= 64 - (length - i * 8) * 8;
		if (asked)
			return false;
	}
	if (length == INLINE_NAME)
		return true;
	rest = chunked_lookup(&long_names, entry->long_name);
	if (!rest)
		return false;
	for (__u32 i = 0; i < sizeof(*rest) / 8; i++) {
		__u32 at = INLINE_NAME + i * 8;
		__u64 asked;

		if (at >= length)
			return true;
		asked = *(__u64 *)(q->name + offset + at);
		asked ^= *(__u64 *)(rest->byte + i * 8);
		if (length - at < 8)
			asked <<= 64 - (length - at) * 8;
		if (asked)
			return false;
	}
	return true;
}

/*
 * The entry of a part of the question's name: its id, or -1. The memory of a hash's element may be reused while it is
 * read: it carries another fingerprint then.
 */
VERIFIED_ONCE int names_find(__u64 key, __u32 offset, __u32 length)
{
	struct query *q = this_query();
	const __u32 zero = 0;
	void *hash = bpf_map_lookup_elem(&names, &zero);
	struct name_entry *entry;

	if (!q || !hash)
		return -1;
	for (int i = 0; i < LOOKUP_RETRIES; i++) {
		__u64 *found = bpf_map_lookup_elem(hash, &key);
		__u64 ref;

		if (!found)
			return -1;
		ref = *(volatile __u64 *)found;
		if (ref >> 32 != key >> 32)
			continue;
		entry = chunked_lookup(&name_entries, ref);
		return entry && same_name(q, offset, length, entry) ? (int)ref : -1;
	}
	return -1;
}

/* A name's label `label` and all behind it, salted. */
static __always_inline int find_suffix(struct query *q, __u32 label, __u64 salt)
{
	__u32 at = label & LABEL_MAX;
	__u32 offset = q->offset_of[at];

	return names_find((LOAD(q->sum) - q->sum_at[at]) * q->inverse_at[at] ^ salt, offset,
			  LOAD(q->name_length) - offset);
}

/* The entry of the longest wildcard, or exclusion, that the name lies below. */
static __always_inline int find_wildcard(struct query *q, __u64 depths)
{
	__u32 labels = LOAD(q->labels);

	for (__u32 i = 0; i < sizeof(depths); i++) {
		__u32 depth = depths & 0xff;
		int id;

		if (!depth)
			break;
		depths >>= 8;
		if (depth >= labels)
			continue;
		id = find_suffix(q, labels - depth, SALT_WILDCARD);
		if (id >= 0)
			return id;
	}
	return -1;
}

/* The entry of the part before the machine's search domain. */
static __always_inline int find_below_search(struct query *q, __u64 depth)
{
	__u32 labels = LOAD(q->labels);
	__u32 label;

	if (!depth || depth >= labels)
		return -1;
	label = (labels - depth) & LABEL_MAX;
	if (find_suffix(q, label, SALT_SEARCH) < 0)
		return -1;
	return names_find(q->sum_at[label], 0, q->offset_of[label]);
}

/* The name itself, then as one below the search domain, then below the longest wildcard. */
static __always_inline int find_name(struct query *q, const struct names_settings *set)
{
	int id = names_find(LOAD(q->sum), 0, LOAD(q->name_length));

	if (id < 0)
		id = find_below_search(q, set->search_depth);
	if (id < 0)
		id = find_wildcard(q, set->wildcard_depths);
	return id;
}
