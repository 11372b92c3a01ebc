/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* A DNS query while it is read and answered, and its question. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "../maps/names.h"

#define DNS_PORT 53
#define DNS_HEADER 12
#define QUESTION_TAIL 4 /* type and class */
#define OPT_RECORD 11
/* The shortest query asks for the root. */
#define SHORTEST_QUERY (DNS_HEADER + 1 + QUESTION_TAIL)
#define LONGEST_QUERY 512
/* A response without EDNS(0), and the longest that is sent with it: it fits into any MTU of IPv6 (dnsflagday.net/2020). */
#define PLAIN_RESPONSE 512
#define LONGEST_RESPONSE 1232
/* Bits of an offset into the response, and room for what is written from there on. */
#define OFFSET_MASK 0x7ffu
#define PACKET_ROOM (OFFSET_MASK + 1 + 272)

enum {
	TYPE_A = 1,
	TYPE_PTR = 12,
	TYPE_AAAA = 28,
	TYPE_OPT = 41,
	TYPE_ANY = 255,
	CLASS_IN = 1
};

/* Bytes 2 and 3 of a DNS header. */
enum {
	QR = 0x80,
	OPCODE = 0x78,
	AA = 0x04,
	TC = 0x02,
	RD = 0x01,
	RA = 0x80,
	CD = 0x10
};

/* In the flags of an OPT record: the client understands DNSSEC (RFC 3225). */
#define DO_BIT 0x80

/*
 * The state of a query. It is in a map because it exceeds the stack, and because the verifier then treats values that loops
 * carry as unknown, which keeps its states few.
 */
struct query {
	__u8 packet[PACKET_ROOM]; /* the query, then the response that grows out of it */
	__u8 name[NAME_MAX + 256 + 18]; /* in lower case, wire form without the root label */
	__u64 sum_at[LABEL_MAX + 1]; /* by label: the hash of what stands before it */
	__u64 inverse_at[LABEL_MAX + 1]; /* M^-offset */
	__u8 offset_of[LABEL_MAX + 1];
	__u64 sum;
	__u32 length; /* of the DNS message */
	__u32 name_length;
	__u32 labels;
	__u32 label_left;
	__u32 at; /* the response's end */
	__u32 limit; /* of the response, without what EDNS adds */
	__u32 count; /* records in the answer */
	__u16 type;
	__u16 client_room; /* EDNS(0): the client's buffer */
	__u8 edns;
	__u8 wants_dnssec;
	__u8 zero[2];
};

/* [0] -> the query of this CPU. Used by one run of a program at a time: bottom halves are off at egress. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct query);
} names_query SEC(".maps");

/* Reads and writes that the compiler may not keep in a register; see struct query. */
#define LOAD(field) (*(volatile typeof(field) *)&(field))
#define STORE(field, value) (*(volatile typeof(field) *)&(field) = (value))

/* Repeats a check for the verifier; it never changes a checked value. */
static __always_inline __u64 bound(__u64 value, const __u32 mask)
{
	asm volatile("%0 &= %1" : "+r"(value) : "i"(mask));
	return value;
}

static __always_inline __u16 word_at(const __u8 *byte)
{
	return (__u16)byte[0] << 8 | byte[1];
}

static __always_inline void put_word(__u8 *byte, __u16 value)
{
	byte[0] = value >> 8;
	byte[1] = value;
}

/*
 * Functions that are not static are verified once, whoever calls them, and not with every path that leads there. They
 * take numbers and the context alone; kernels before 5.17 or so know no more.
 */
#define VERIFIED_ONCE __noinline

static __always_inline struct query *this_query(void)
{
	const __u32 zero = 0;

	return bpf_map_lookup_elem(&names_query, &zero);
}

/* The question's name: lower case, hashes at the labels' borders. Compressed and overlong names are malformed. */
VERIFIED_ONCE int names_read_name(__u64 multiplier, __u64 inverse)
{
	struct query *q = this_query();
	__u64 sum = 0, power = 1, unpower = 1;

	if (!q)
		return false;
	STORE(q->labels, 0);
	STORE(q->label_left, 0);
	for (__u32 i = 0; i <= NAME_MAX; i++) {
		__u32 left = LOAD(q->label_left);
		__u8 byte = q->packet[DNS_HEADER + i];

		if (DNS_HEADER + i >= LOAD(q->length))
			return false;
		if (left) {
			if (byte >= 'A' && byte <= 'Z')
				byte |= 0x20;
			STORE(q->label_left, left - 1);
		} else {
			__u32 label = LOAD(q->labels);

			if (!byte) {
				STORE(q->name_length, i);
				STORE(q->sum, sum);
				return true;
			}
			if (byte > 63 || label >= LABEL_MAX)
				return false;
			q->offset_of[label] = i;
			q->sum_at[label] = sum;
			q->inverse_at[label] = unpower;
			STORE(q->labels, label + 1);
			STORE(q->label_left, byte);
		}
		q->name[i] = byte;
		sum += byte * power;
		power *= multiplier;
		unpower *= inverse;
	}
	return false;
}

/* Type and class of the question, and the OPT record behind it. Gives NAMES_COUNT_END, or why the query is not ours. */
static __always_inline __u32 read_tail(struct query *q)
{
	__u32 at = DNS_HEADER + 1 + bound(LOAD(q->name_length), 0xff);
	__u32 length = LOAD(q->length);
	__u8 more = q->packet[11];

	if (at + QUESTION_TAIL > length)
		return NAMES_PASSED_MALFORMED;
	q->type = word_at(q->packet + at);
	if (word_at(q->packet + at + 2) != CLASS_IN)
		return NAMES_PASSED_FORM;
	at += QUESTION_TAIL;
	STORE(q->at, at);
	q->edns = more;
	STORE(q->limit, PLAIN_RESPONSE);
	if (!more)
		return at == length ? NAMES_COUNT_END : NAMES_PASSED_MALFORMED;
	if (at + OPT_RECORD > length)
		return NAMES_PASSED_MALFORMED;
	/* Signed by TSIG, for one; or a later version of EDNS. */
	if (q->packet[at] || word_at(q->packet + at + 1) != TYPE_OPT || q->packet[at + 6])
		return NAMES_PASSED_FORM;
	if (at + OPT_RECORD + word_at(q->packet + at + 9) != length)
		return NAMES_PASSED_MALFORMED;
	q->client_room = word_at(q->packet + at + 3);
	q->wants_dnssec = q->packet[at + 7] & DO_BIT;
	if (q->client_room > PLAIN_RESPONSE)
		STORE(q->limit, q->client_room < LONGEST_RESPONSE ? q->client_room : LONGEST_RESPONSE);
	STORE(q->limit, LOAD(q->limit) - OPT_RECORD);
	return NAMES_COUNT_END;
}
