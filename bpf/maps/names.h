/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The table of mesh names. The agent is its only writer. It is a layout of its own: a change here is a new table beside
 * the old one, and does not touch the tables of connections.
 *
 * A name is hashed in wire form (RFC 1035, 3.1), in lower case, without the root label: byte i counts byte * M^i
 * (mod 2^64), where M is an odd number that each table draws. So the hash of every suffix and prefix at a label's
 * border follows from one pass over the name. A hash only finds an entry; the whole name decides.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "chunked.h"

/* Of a name in wire form without the root label. */
#define NAME_MAX 254
#define LABEL_MAX 127
#define INLINE_NAME 48

enum names_flag {
	NAMES_ON = 1,
	NAMES_SHADOW = 2, /* count, answer nothing */
	NAMES_FORWARDED = 4, /* answer queries of other network namespaces that pass through */
	NAMES_EVERY_CGROUP = 8, /* answer whoever asks */
	NAMES_TRUNCATE = 16, /* set TC when not all addresses fit, so that the client asks again by TCP */
};

/* Each member is published by itself with one store. */
struct names_settings {
	__u64 flags;
	__u64 multiplier; /* M; fixed for a table's life */
	__u64 inverse; /* of M, mod 2^64 */
	__u64 wildcard_depths; /* a byte each: how many labels wildcards have behind their asterisk; the most in the lowest */
	__u64 search_depth; /* how many labels the search domain has; 0 = there is none */
	__u64 reserved[11];
};

enum entry_kind {
	ENTRY_ADDRESSES = 1,
	ENTRY_POINTER = 2, /* of a reverse name: answers.first is the id of the entry whose name it points at */
	ENTRY_PASS = 3, /* an excluded suffix or name: the query goes on */
	ENTRY_SEARCH = 4, /* a search domain of the machine: what stands before it is looked up alone */
};

/* What is xored to the hash of a suffix: a suffix as a name, as a wildcard and as a search domain are three keys. */
#define SALT_WILDCARD 0x9e3779b97f4a7c15ull
#define SALT_SEARCH 0xc2b2ae3d27d4eb4full

/* A run of `name_addresses`: the IPv4 ones first. Published with one 8-byte store. */
struct name_answers {
	__u32 first;
	__u16 v4;
	__u16 v6;
};

struct name_entry {
	struct name_answers answers;
	__u32 long_name; /* id in `long_names` of what does not fit here */
	__u8 length;
	__u8 kind;
	__u8 wildcard; /* 1 = the name stands behind an asterisk */
	__u8 zero;
	__u8 name[INLINE_NAME];
};

struct long_name {
	__u8 byte[NAME_MAX + 2 - INLINE_NAME];
};

/* Counters of `names_counts`. Append only: they outlive the table. */
enum names_count {
	NAMES_ANSWERED_A,
	NAMES_ANSWERED_AAAA,
	NAMES_ANSWERED_PTR,
	NAMES_ANSWERED_EMPTY, /* NOERROR without a record: another type, or a family that the name lacks */
	NAMES_WOULD_ANSWER, /* shadow mode */
	NAMES_PASSED_UNKNOWN, /* no mesh name */
	NAMES_PASSED_EXCLUDED,
	NAMES_PASSED_NOT_ENROLLED,
	NAMES_PASSED_AGENT, /* the agent looks up endpoints upstream */
	NAMES_PASSED_FORWARDED, /* of another network namespace */
	NAMES_PASSED_FORM, /* no plain query of one question: a response, an update, signed, a class other than IN */
	NAMES_PASSED_MALFORMED,
	NAMES_PASSED_OFF,
	NAMES_FAILED, /* the packet could not be rewritten and was dropped: the client asks again */
	NAMES_COUNT_END,
};

#define NAMES_COUNT_ROOM 64

union names_records {
	struct name_entry name_entry;
	struct name_answers name_answers;
	struct long_name long_name;
	struct address address;
	enum names_flag names_flag;
	enum entry_kind entry_kind;
	enum names_count names_count;
} names_records SEC(".layout");

/* [0] -> settings. Written by the agent, read at every query. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct names_settings);
} names_settings SEC(".maps");

/*
 * [0] -> hash {hash of a name, salted} -> entry id. Elements are inserted and deleted, never replaced. Written by the
 * agent, read at every query. Grows by a larger copy, put in place by one outer update.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__uint(max_entries, 1024);
			__uint(key_size, sizeof(__u64));
			__uint(value_size, sizeof(__u64));
		});
} names SEC(".maps");

/* Entry id -> entry. Reused only after a grace period; `answers` is replaced with one store. Written by the agent. */
struct {
	CHUNKED(struct name_entry);
} name_entries SEC(".maps");

/* Id -> what of a name follows its first INLINE_NAME bytes. Written by the agent, reused with the entry. */
struct {
	CHUNKED(struct long_name);
} long_names SEC(".maps");

/* Address id -> address. Runs are written where no reader looks, and reused after a grace period. Written by the agent. */
struct {
	CHUNKED(struct address);
} name_addresses SEC(".maps");

/* enum names_count -> events on each CPU. Written here, read by the agent; outlives every table. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NAMES_COUNT_ROOM);
	__type(key, __u32);
	__type(value, __u64);
} names_counts SEC(".maps");
