/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Turns a query's message into the response. */
#include <bpf/bpf_endian.h>

#include "query.h"

#define MOST_ANSWERS 76 /* A records in the longest response */
#define TTL_SECONDS 30
#define NAME_POINTER 0xc00c /* to the question's name (RFC 1035, 4.1.4) */

/* Starts a resource record at the response's end. Gives where its data begins; 0 when `size` bytes of it don't fit. */
static __always_inline __u32 put_record(struct query *q, __u16 type, __u16 size)
{
	__u32 at = bound(LOAD(q->at), OFFSET_MASK);

	if (at + 12 + size > LOAD(q->limit))
		return 0;
	put_word(q->packet + at, NAME_POINTER);
	put_word(q->packet + at + 2, type);
	put_word(q->packet + at + 4, CLASS_IN);
	put_word(q->packet + at + 6, 0);
	put_word(q->packet + at + 8, TTL_SECONDS);
	put_word(q->packet + at + 10, size);
	STORE(q->at, at + 12 + size);
	STORE(q->count, LOAD(q->count) + 1);
	return at + 12;
}

/* Puts the address with this id into the response. False when there is no room for it, or no such address. */
VERIFIED_ONCE int names_put_address(__u32 id, __u32 v6)
{
	struct query *q = this_query();
	struct address *address;
	__u32 at;

	if (!q)
		return false;
	address = chunked_lookup(&name_addresses, id);
	if (!address)
		return false;
	at = put_record(q, v6 ? TYPE_AAAA : TYPE_A, v6 ? 16 : 4);
	if (!at)
		return false;
	at = bound(at, OFFSET_MASK);
	if (v6)
		__builtin_memcpy(q->packet + at, address, 16);
	else
		__builtin_memcpy(q->packet + at, &address->word[3], 4);
	return true;
}

/* As many addresses as fit, from a random one on. */
VERIFIED_ONCE int names_put_addresses(__u32 first, __u32 total, __u32 v6)
{
	__u32 start = total ? bpf_get_prandom_u32() % total : 0;

	for (__u32 i = 0; i < MOST_ANSWERS && i < total; i++) {
		__u32 id = start + i;

		if (id >= total)
			id -= total;
		if (!names_put_address(first + id, v6))
			break;
	}
	return 0;
}

/* The name of another entry, as a PTR record's data. */
static __always_inline void put_pointer(struct query *q, __u32 id)
{
	struct name_entry *entry = chunked_lookup(&name_entries, id);
	struct long_name *rest;
	__u32 at, length;

	if (!entry)
		return;
	length = entry->length;
	at = put_record(q, TYPE_PTR, length + 1);
	if (!at)
		return;
	at = bound(at, OFFSET_MASK);
	/* Excess bytes are cut off, or overwritten by the following record. */
	__builtin_memcpy(q->packet + at, entry->name, INLINE_NAME);
	if (length > INLINE_NAME) {
		rest = chunked_lookup(&long_names, entry->long_name);
		if (!rest)
			return;
		__builtin_memcpy(q->packet + at + INLINE_NAME, rest, sizeof(*rest));
	}
	q->packet[at + length] = 0;
}

/* Turns the query in `q->packet` into the response. Gives what to count it as. */
static __always_inline __u32 build_response(struct query *q, struct name_entry *entry, const struct names_settings *set)
{
	/* One load: the run is the old one or the new one. */
	const union {
		__u64 word;
		struct name_answers run;
	} answers = { .word = *(volatile __u64 *)&entry->answers };
	__u32 event = NAMES_ANSWERED_EMPTY;
	__u16 type = q->type;
	__u32 total = 0;
	__u32 at;

	STORE(q->count, 0);
	if (entry->kind == ENTRY_POINTER) {
		if (type == TYPE_PTR || type == TYPE_ANY) {
			event = NAMES_ANSWERED_PTR;
			put_pointer(q, answers.run.first);
		}
	} else if (type == TYPE_A || (type == TYPE_ANY && answers.run.v4)) {
		event = NAMES_ANSWERED_A;
		total = answers.run.v4;
		names_put_addresses(answers.run.first, total, false);
	} else if (type == TYPE_AAAA || type == TYPE_ANY) {
		event = NAMES_ANSWERED_AAAA;
		total = answers.run.v6;
		names_put_addresses(answers.run.first + answers.run.v4, total, true);
	}
	if (!LOAD(q->count))
		event = NAMES_ANSWERED_EMPTY;
	q->packet[2] = QR | AA | (q->packet[2] & RD);
	/* Off by default: a client that sees it asks by TCP a server that may not know the name. See docs/names.md. */
	if (LOAD(q->count) < total && set->flags & NAMES_TRUNCATE)
		q->packet[2] |= TC;
	q->packet[3] = RA | (q->packet[3] & CD);
	put_word(q->packet + 6, LOAD(q->count));
	put_word(q->packet + 8, 0);
	put_word(q->packet + 10, q->edns);
	at = bound(LOAD(q->at), OFFSET_MASK);
	if (q->edns) {
		__builtin_memset(q->packet + at, 0, OPT_RECORD);
		q->packet[at + 2] = TYPE_OPT;
		put_word(q->packet + at + 3, LONGEST_RESPONSE);
		q->packet[at + 7] = q->wants_dnssec;
		STORE(q->at, at + OPT_RECORD);
	}
	return event;
}
