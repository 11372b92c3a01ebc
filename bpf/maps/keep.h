/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What outlives every generation of tables and programs: who is who (names, endpoints and their ids), what a socket
 * carries, and what is counted. All generations use these maps at once, so none of these layouts ever changes: a record
 * has room to grow, what is reserved is zero, and what needs more gets another map beside it. The table of them all is
 * in src/datapath/generation/keep.test.ts.
 */
#include "address.h"
#include "chunked.h"
#include "enrolled.h"
#include "verdict.h"

enum socket_flag {
	SOCKET_REDIRECTED = 1,
	SOCKET_COUNTED = 2, /* it stands in the live counts */
	SOCKET_PROBE = 4, /* of a generation that is being proved: programs of the others leave it alone */
	SOCKET_MPTCP = 8, /* an MPTCP socket: how its connect() went is known by its first subflow */
};

/* An id that no table has a record for. */
#define NO_ENDPOINT 0xffffffffu

/* Whether the connection stands in a row of traffic.h. */
enum flow_state {
	FLOW_NONE = 0,
	FLOW_BEGUN = 1, /* it will: the next flush, or its end, adds it */
	FLOW_OPENED = 2,
	FLOW_OTHER = 3, /* the same, in traffic_other */
	FLOW_ENDED = 4, /* of an accepted connection: its end stands there, too */
};

/* What is counted of a connection so far (flow.h). All of it says something only while `flow` is not FLOW_NONE. */
struct flow_progress {
	__u64 since_ns; /* CLOCK_MONOTONIC at connect(), or when an accepted connection was first seen */
	__u64 source; /* who connected, or who accepts */
	__u64 sent; /* bytes that stand in the row already */
	__u64 received;
	__u32 retransmits;
	__u32 flow; /* enum flow_state */
	__u32 pid; /* thread group that connected */
	__u32 zero;
};

struct socket_state {
	__u16 version;
	__u16 flags;
	__u32 service;
	__u32 cluster;
	__u32 endpoint; /* NO_ENDPOINT: it went to the address that it asked for, at another port */
	struct address asked; /* where the app wanted to go */
	__be16 asked_port;
	__u16 zero;
	__u32 sequence; /* write_seq at connect(): another one later tells that a SYN was sent */
	union {
		struct flow_progress progress;
		struct {
			__u64 since_ns;
			__u64 source;
			__u64 flushed_sent;
			__u64 flushed_received;
			__u32 flushed_retransmits;
			__u32 flow;
			__u32 pid;
			__u32 zero2;
		};
	};
	__u64 reserved;
};

/* Socket -> what was decided for it. Written by connect4/6 and sock_release, read by getpeername; ends with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_state);
} sockets SEC(".maps");

/* An id is given once, and to another address only when no generation and no socket can carry it. */
struct endpoint {
	struct address address;
	__be16 port;
	__u8 is_v4;
	__u8 zero;
	__u32 used; /* 0 = the id is free */
	__u32 reserved[2];
};

/* Endpoint id -> endpoint. Written by the agent where no reader looks yet, read by connect4/6. */
struct {
	CHUNKED(struct endpoint);
} endpoints SEC(".maps");

struct endpoint_load {
	__u64 live; /* connections from connect() to the socket's close */
	__u32 failures; /* connects that failed in a row */
	__u32 ejections; /* in a row: each lasts longer */
	__u64 ejected_until_ns; /* CLOCK_MONOTONIC; what began to connect before then, or before the row, says nothing */
	__u64 failed; /* connects that failed, ever */
};

/* Endpoint id -> live connections and health. Written by connect4/6, sock_release and the tunnel, read at choice and by the agent. */
struct {
	CHUNKED(struct endpoint_load);
} endpoint_loads SEC(".maps");

struct cluster_load {
	__u64 turn; /* of splits and of round robin over IPv4 endpoints, shared by all CPUs: shares are exact */
	__u64 live;
	__u64 turn_v6; /* of round robin over IPv6 endpoints: who uses both in turn must not skip half of either */
	__u64 ejected_until_ns; /* CLOCK_MONOTONIC: when the last of its ejections ends */
	__u32 ejected; /* endpoints that this cluster ejected since none was */
	__u32 reserved;
	__u64 ejections; /* ever */
	__u64 reserved2[2];
};

/* Cluster id -> turns and live connections. Written by connect4/6, sock_release and the tunnel. */
struct {
	CHUNKED(struct cluster_load);
} cluster_loads SEC(".maps");

struct service_counters {
	__u64 redirected;
	__u64 passed;
	__u64 would_redirect; /* shadow mode */
	__u64 would_refuse;
	__u64 refused[REASON_COUNT];
	__u64 failed; /* redirected, and the endpoint refused or did not answer */
	__u64 reserved[7];
};

/* Service id -> counters; id 0 counts what belongs to no service. Written by connect4/6, read by the agent. */
struct {
	CHUNKED(struct service_counters);
} service_counts SEC(".maps");

/* Where a name lies: `length` bytes from the start of line `first_line` on. Published with one 8-byte store. */
struct name_ref {
	__u32 first_line;
	__u32 length; /* 0 = the id is free */
};

struct name_line {
	__u8 byte[64];
};

/*
 * Names: no program reads them. With them the kernel's state explains itself, and an agent that starts finds again
 * which id it gave to whom.
 */
struct {
	CHUNKED(struct name_line);
} name_lines SEC(".maps");

/* Cluster id -> name. */
struct {
	CHUNKED(struct name_ref);
} cluster_names SEC(".maps");

/* Service id -> name. */
struct {
	CHUNKED(struct name_ref);
} service_names SEC(".maps");

/* See table_records. */
union keep_records {
	struct endpoint endpoint;
	struct name_ref name_ref;
	struct name_line name_line;
	struct endpoint_load endpoint_load;
	struct cluster_load cluster_load;
	struct service_counters service_counters;
	enum socket_flag socket_flag;
	enum flow_state flow_state;
} keep_records SEC(".layout");
