/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Tables of what may come in. The agent compiles all policies into one number for each (port, class of sources, class of
 * destinations), so that the cost of a look-up does not grow with the number of policies.
 *
 * A set of tables is made new for each change, in the slot that is not used; one store of `inbound_settings` then makes it
 * the one that governs. A connection is judged by the old set or by the new one. The old one is reused after a grace period.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define INBOUND_SLOTS 2
#define INBOUND_NUMBERS 16384
#define INBOUND_RECENT 64
#define INBOUND_TEXT 4096
#define INBOUND_LOCAL 4096

/* The word of inbound_settings. */
enum inbound_flags {
	INBOUND_ON = 1,
	INBOUND_SLOT = 2, /* set: slot 1 governs, else slot 0 */
};

/* PeerAuthentication of a port. */
enum inbound_mode {
	MODE_DISABLE = 0,
	MODE_PERMISSIVE = 1,
	MODE_STRICT = 2,
};

/* Which classes the cell of a port depends on. */
enum inbound_port_flags {
	PORT_BY_SOURCE = 1,
	PORT_BY_DESTINATION = 2,
};

/* Who refused: a number of this list, or from REFUSED_POLICY on that of a policy. Never reused for something else. */
enum inbound_refusal {
	REFUSED_NOT = 0,
	REFUSED_STRICT = 1, /* plaintext, or no tunnel that could tell, where mutual TLS is demanded */
	REFUSED_TOO_LARGE = 2, /* the policies of this port don't fit into the tables */
	REFUSED_OTHER = 3, /* one of the policies for which no number was left */
	REFUSED_INTERNAL = 4, /* the tables contradict each other */
	REFUSED_POLICY = 16,
};

/* Words of `inbound_listeners`. */
enum inbound_listener {
	LISTENER_V4 = 0,
	LISTENER_V6 = 1,
	LISTENER_COUNT = 2,
};

struct inbound_port {
	__u32 first_cell;
	__u32 destinations; /* cells of one class of sources */
	__u8 mode; /* enum inbound_mode */
	__u8 flags; /* enum inbound_port_flags */
	__u8 reserved[6];
};

/* IPv4 addresses are v4-mapped; `bits` counts from the first of 128. */
struct inbound_prefix {
	__u32 bits;
	__be32 word[4];
};

/* Who refuses plaintext, and who refuses whatever identity the peer may prove; REFUSED_NOT: nobody. */
struct inbound_cell {
	__u16 plaintext;
	__u16 anybody;
};

/* IPv4 v4-mapped. */
struct inbound_address {
	__be32 word[4];
};

struct inbound_recent {
	__u64 number; /* 1 for the first ever; 0 while the record is written */
	__u64 at_ns; /* CLOCK_MONOTONIC */
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__u16 port; /* of this machine, in its byte order */
	__u32 refusal;
	__u64 reserved[2];
};

/* clang-format off */
#define SLOTS(inner_type, inner_flags, key_of, value_of)                       \
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                              \
	__uint(max_entries, INBOUND_SLOTS);                                    \
	__type(key, __u32);                                                    \
	__array(values, struct {                                               \
		__uint(type, inner_type);                                      \
		__uint(map_flags, inner_flags);                                \
		__uint(max_entries, 1);                                        \
		__uint(key_size, sizeof(key_of));                              \
		__uint(value_size, sizeof(value_of));                          \
	})
/* clang-format on */

/* [0] -> enum inbound_flags. Written by the agent with one store, read here. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} inbound_settings SEC(".maps");

/* Slot -> (port of this machine -> struct inbound_port). Ports that are not in it are not governed. Made by the agent. */
struct {
	SLOTS(BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, struct inbound_port);
} inbound_ports SEC(".maps");

/* Slot -> (prefix -> class of sources). Made by the agent; as many as the policies have prefixes. */
struct {
	SLOTS(BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC, struct inbound_prefix, __u32);
} inbound_sources SEC(".maps");

/* Slot -> (prefix -> class of destinations). As inbound_sources. */
struct {
	SLOTS(BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC, struct inbound_prefix, __u32);
} inbound_dests SEC(".maps");

/* Slot -> (cell -> struct inbound_cell). Made by the agent; 2^20 cells at most. */
struct {
	SLOTS(BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, __u32, struct inbound_cell);
} inbound_cells SEC(".maps");

/*
 * Address of this machine -> 1: its own connections from there are exempt. Written by the agent, which follows the
 * interfaces. INBOUND_LOCAL at most; further ones are not exempt.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, INBOUND_LOCAL);
	__type(key, struct inbound_address);
	__type(value, __u32);
} inbound_local SEC(".maps");

/* enum inbound_listener -> the tunnel's listening socket. Put there by the tunnel; the kernel takes it out with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, LISTENER_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} inbound_listeners SEC(".maps");

/* enum inbound_refusal -> connections refused. Counted here, read by whoever shows it. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, INBOUND_NUMBERS);
	__type(key, __u32);
	__type(value, __u64);
} inbound_refusals SEC(".maps");

/* Number modulo INBOUND_RECENT -> one of the last refusals. Written here. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, INBOUND_RECENT);
	__type(key, __u32);
	__type(value, struct inbound_recent);
} inbound_recent SEC(".maps");

/* [0] -> how many refusals there were. Written with the records. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} inbound_number SEC(".maps");

/*
 * [0] -> the policies as text (JSON), in pieces: for the tunnel, `kmesh explain`, and an agent that starts. No program reads
 * it; it is bound to the one below. A larger array takes the place of the one before.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(map_flags, BPF_F_INNER_MAP);
			__uint(max_entries, 1);
			__uint(key_size, sizeof(__u32));
			__uint(value_size, INBOUND_TEXT);
		});
} inbound_text SEC(".maps");

/* What goes through maps without naming its type. */
union inbound_records {
	struct inbound_port port;
	struct inbound_prefix prefix;
	struct inbound_cell cell;
	enum inbound_flags flags;
	enum inbound_mode mode;
	enum inbound_port_flags port_flags;
	enum inbound_refusal refusal;
	enum inbound_listener listener;
} inbound_records SEC(".layout");
