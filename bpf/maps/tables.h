/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The tables of one generation. The agent is their only writer, the programs only read. Record layouts are part
 * of the ABI: user space takes them from the BTF of the built object.
 */
#include "address.h"
#include "chunked.h"
#include "verdict.h"

struct frontend_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

/*
 * The value of `frontends`. Its memory may be reused for another key while a reader holds it, so it carries the
 * key's fingerprint; read it with one 8-byte load.
 */
struct frontend_ref {
	__u32 frontend;
	__u32 fingerprint;
};

enum family {
	FAMILY_V4 = 4,
	FAMILY_V6 = 6,
};

/* The family stands before the address, or a short IPv6 block would have the v4-mapped addresses in it. */
struct prefix_key {
	__u32 bits; /* of what follows; 24 = every address of both families */
	__be16 port;
	__u8 protocol;
	__u8 family;
	struct address address;
};

enum cluster_kind {
	CLUSTER_ENDPOINTS = 1, /* slots hold endpoint ids */
	CLUSTER_SPLIT = 2, /* slots hold cluster ids, taken in turn */
	CLUSTER_PASS = 3,
	CLUSTER_REFUSE = 4,
	CLUSTER_PORT = 5, /* the address that the app asked for, at `port` */
};

enum balance {
	BALANCE_ROUND_ROBIN = 0,
	BALANCE_RANDOM = 1,
	BALANCE_LEAST_REQUEST = 2,
	BALANCE_HASH = 3, /* slots are a ring or Maglev table */
};

/* Slots [first_line * SLOTS_PER_LINE, ... + count), in an order that is smooth by weight. */
struct run {
	__u32 first_line;
	__u32 count;
};

/* When endpoints whose connects fail get no connections for a while. */
struct ejection {
	__u32 after; /* that many in a row; 0 = never */
	__u32 base_ms; /* the first lasts that long, the second in a row twice as long, ... */
	__u32 longest_ms;
	__u16 percent; /* of the slots at most; one endpoint always may */
	__u16 enforcing; /* out of a hundred rows of failures so many eject */
};

/* Immutable once published. */
struct descriptor {
	__u8 kind;
	__u8 balance;
	__u8 reason; /* CLUSTER_REFUSE */
	__u8 zero;
	__u32 max_connections; /* 0 = no limit */
	struct run v4;
	struct run v6;
	struct ejection ejection;
	__be16 port; /* CLUSTER_PORT */
	__u16 zero2;
	__u32 fallback; /* descriptor of the next priority, for when every endpoint here is ejected; 0 = none */
	__u8 digest[16]; /* of what the agent compiled this from; it knows by it what needs no write */
};

/* Descriptors in a chain of fallbacks at most; the last one has all further priorities. */
#define MAX_FALLBACKS 8

#define SLOTS_PER_LINE 16
/* In a slot instead of an id: refuse with the reason in the low bits. */
#define SLOT_REFUSE 0x80000000u

struct slot_line {
	__u32 slot[SLOTS_PER_LINE];
};

enum settings_flag {
	SETTING_SHADOW = 1, /* decide and count, change nothing */
	SETTING_EVERY_NETNS = 2,
	SETTING_EVERY_CGROUP = 4,
	SETTING_PREFIXES = 8, /* `prefixes` is not empty */
	SETTING_EXCLUSIONS = 16, /* `exclusions` is not empty */
	SETTING_TUNNEL = 32, /* endpoints are reached through the tunnel: nobody may enter it by himself */
};

/* In settings.netns: the kernel (before 5.14) does not tell the agent which namespace it is in. Any may be its own. */
#define NETNS_UNKNOWN (~0ull)

/* Each member is published by itself with one store. */
struct settings {
	__u64 flags;
	__u64 fallback; /* target word of what matches no frontend; 0 = pass */
	__u64 netns; /* cookie of the network namespace of agent and tunnel; 0 = the initial one, or NETNS_UNKNOWN */
	__u64 node_v4; /* what source hashing takes for a socket without an address: the last 4 bytes, as read from memory */
	__u64 node_v6[2];
	__u64 current_ns; /* CLOCK_MONOTONIC: when these tables were last known to follow istiod; stored each second */
	__u64 broadcast_filter; /* bit broadcast_bit() is set for each of this machine's broadcast addresses in `exclusions` */
	__u64 reserved[8];
};

/* Clang leaves out of the BTF what only inner maps name; user space and libbpf need these whole. */
union table_records {
	struct frontend_key frontend_key;
	struct frontend_ref frontend_ref;
	struct prefix_key prefix_key;
	struct descriptor descriptor;
	struct slot_line slot_line;
	enum family family;
	enum cluster_kind cluster_kind;
	enum balance balance;
	enum settings_flag settings_flag;
	enum reason reason;
	enum action action;
} table_records SEC(".layout");

/* [0] -> settings. Written by the agent, read at every connect. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

/*
 * [0] -> hash {address, port, protocol} -> frontend_ref: exact frontends. Elements are inserted and deleted, never
 * replaced (a replaced one is missing for a moment). Grows by a larger copy, put in place by one outer update.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	/* clang-format off */
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(max_entries, 1024);
		__uint(key_size, sizeof(struct frontend_key));
		__uint(value_size, sizeof(struct frontend_ref));
	});
	/* clang-format on */
} frontends SEC(".maps");

/*
 * [0] -> trie {port, protocol, family, address block} -> frontend_ref: CIDR and port-wide frontends. A trie only ever gets
 * additions; a deletion builds another one and puts it in place, so its memory is never reused under a reader.
 */
struct prefix_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__uint(key_size, sizeof(struct prefix_key));
	__uint(value_size, sizeof(struct frontend_ref));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct prefix_trie);
} prefixes SEC(".maps");

/*
 * [0] -> trie like the one of `prefixes`, port 0 = every port: destinations that are never governed. The id is 1 for this
 * machine's broadcast addresses, 0 for what the configuration excludes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct prefix_trie);
} exclusions SEC(".maps");

/* Frontend id -> target word. */
struct {
	CHUNKED(__u64);
} targets SEC(".maps");

/* Cluster id -> descriptor id; 0 = none. Republished with one store when a cluster changes. */
struct {
	CHUNKED(__u64);
} clusters SEC(".maps");

/* Descriptor id -> descriptor. Reused only after a grace period. */
struct {
	CHUNKED(struct descriptor);
} descriptors SEC(".maps");

/* Slot line id -> 16 slots. Reused with the descriptor that points here. */
struct {
	CHUNKED(struct slot_line);
} slots SEC(".maps");
