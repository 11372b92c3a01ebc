/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* From the address and port that a socket asks for to the target word of the frontend there. */
#include "../include/exempt.h"
#include "request.h"

#define FINGERPRINT_RETRIES 4

/* The key of a lookup for the longest matching block in a trie. */
static __always_inline struct prefix_key host_key(const struct request *req)
{
	struct prefix_key key = {
		.bits = (sizeof(key) - sizeof(key.bits)) * 8,
		.port = req->port,
		.protocol = IPPROTO_TCP,
		.family = is_mapped(&req->address) ? FAMILY_V4 : FAMILY_V6,
		.address = req->address,
	};

	return key;
}

/* src/datapath/tables/frontend-key.ts computes the same. */
static __always_inline __u32 fingerprint(const struct frontend_key *key)
{
	const __u32 *word = (const __u32 *)key;
	__u32 hash = 0x9e3779b9;

	for (int i = 0; i < (int)(sizeof(*key) / sizeof(*word)); i++) {
		hash ^= word[i];
		hash *= 0x85ebca6b;
		hash ^= hash >> 13;
	}
	return hash;
}

/* The verdict for tables that contradict each other: refused and counted, never passed by accident. */
#define CONTRADICTION target_word(ACTION_REFUSE, 0, REASON_INTERNAL)

static __always_inline __u64 target_of(__u32 frontend)
{
	__u64 *word = chunked_lookup(&targets, frontend);

	return word ? *(volatile __u64 *)word : CONTRADICTION;
}

/* 0 when no frontend has this address and port. */
static __always_inline __u64 exact_target(const struct request *req)
{
	struct frontend_key key = {
		.address = req->address,
		.port = req->port,
		.protocol = IPPROTO_TCP,
	};
	__u32 expected = fingerprint(&key);
	__u32 zero = 0;
	void *table = bpf_map_lookup_elem(&frontends, &zero);

	if (!table)
		return CONTRADICTION;
	for (int i = 0; i < FINGERPRINT_RETRIES; i++) {
		__u64 *value = bpf_map_lookup_elem(table, &key);
		__u64 ref;

		if (!value)
			return 0;
		ref = *(volatile __u64 *)value;
		if (ref >> 32 == expected)
			return target_of(ref);
	}
	return CONTRADICTION;
}

/* Longest prefix of this port, else the port alone. */
static __always_inline __u64 prefix_target(const struct settings *set, const struct request *req)
{
	struct prefix_key key = host_key(req);
	__u32 zero = 0;
	__u64 *value;
	void *trie;

	if (!(set->flags & SETTING_PREFIXES))
		return 0;
	trie = bpf_map_lookup_elem(&prefixes, &zero);
	if (!trie)
		return CONTRADICTION;
	value = bpf_map_lookup_elem(trie, &key);
	return value ? target_of(*(volatile __u64 *)value) : 0;
}

static __always_inline __u64 find_target(const struct settings *set, const struct request *req)
{
	__u64 word = exact_target(req);

	if (!word)
		word = prefix_target(set, req);
	if (!word)
		word = *(volatile __u64 *)&set->fallback;
	return word;
}
