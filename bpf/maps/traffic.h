/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What is counted for each pair of a source (who connects) and a destination: the records and maps. flow.h counts,
 * source.h names the source. These maps are part of keep/: all generations add to the same rows, and no layout here ever
 * changes. Programs only add and insert; the agent names, retires and deletes.
 */
#include "address.h"
#include "keep.h"

enum traffic_flag {
	TRAFFIC_COUNT = 1, /* outbound connections are counted */
	TRAFFIC_SERVED = 2, /* some bit of `served_ports` is set: accepted connections are counted */
	TRAFFIC_LOG = 4, /* each end of a connection is written to `traffic_log` */
	TRAFFIC_ACCEPTED = 8, /* sockets may stand in `accepted`; once set, it stays */
};

/* Each member is published by itself with one store. */
struct traffic {
	__u64 flags;
	__u64 unlogged; /* records that `traffic_log` had no room for, ever */
	__u64 interval_ns; /* live connections are logged that often; 0 = never */
	__u64 flushed_ns; /* CLOCK_MONOTONIC: the flush before the one that runs */
	__u64 flush_ns; /* when the one that runs began */
	__u64 unnamed; /* sources that `source_names` had no room for, ever */
	__u64 reserved[2];
};

/* [0] -> what is counted. Written by the agent (programs add to `unlogged` and `unnamed`), read at every connect and release. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct traffic);
} traffic SEC(".maps");

#define SERVED_WORDS 1024

/* Port / 64 -> a bit for each local port whose accepted connections are counted. Written by the agent, read by sock_release. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SERVED_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} served_ports SEC(".maps");

enum flow_direction {
	FLOW_OUT = 1, /* to an endpoint that kmesh chose */
	FLOW_IN = 2, /* accepted on a served port */
	FLOW_REFUSED = 3, /* refused on purpose; `endpoint` is the reason */
	FLOW_PASSED = 4, /* went where the app asked to */
};

/* How a connection ended. */
enum flow_end {
	FLOW_CLOSED = 0,
	FLOW_CONNECT_REFUSED = 1, /* a reset was the answer to the SYN */
	FLOW_CONNECT_TIMED_OUT = 2, /* no answer to the SYN and to at least one more */
	FLOW_UNREACHABLE = 3, /* an ICMP error, or no route or port of our own: nothing answered */
	FLOW_RESET = 4, /* established, then reset by the peer or given up by the kernel */
	FLOW_ABORTED = 5, /* by the app: SO_LINGER 0, or closed before there was an answer */
	FLOW_REUSED = 6, /* connect() with AF_UNSPEC: how many bytes it had is lost */
	FLOW_ENDS = 8,
};

/* Who and where to. Equal bytes are the same row. */
struct flow_key {
	__u64 source; /* see source.h; 0 = unknown */
	__u8 direction;
	__u8 protocol;
	__be16 port; /* FLOW_IN: the local one */
	__u32 zero;
	union {
		struct {
			__u32 service;
			__u32 cluster;
			__u32 endpoint;
			__u32 zero2;
		};
		struct address remote; /* FLOW_IN */
	};
};

/* Only ever added to. Live connections are opened minus the sum of ends. */
struct flow_row {
	__u32 version;
	__u32 retiring; /* 1 = the agent is about to move it into retired_rows: what begins now is counted in traffic_other */
	__u64 opened;
	__u64 ends[FLOW_ENDS];
	__u64 sent; /* payload bytes that this machine's app sent */
	__u64 received;
	__u64 retransmits; /* segments */
	__u64 failed_ns; /* how long connects took that failed */
	__u64 duration_ns; /* of connections that were established and ended */
	__u64 rtt_us; /* sum of each connection's least round trip */
	__u64 rtts; /* of so many */
	__u64 used_ns; /* CLOCK_MONOTONIC of the last end or flush that found news */
	__u64 reserved[2];
};

#define MAX_FLOW_ROWS 65536
#define MAX_CALLER_ROWS 4096

/*
 * flow_key -> flow_row, all directions but FLOW_IN. Rows are inserted by connect4/6, sock_release and the flush (BPF_NOEXIST),
 * read by the agent, and deleted by it when neither a generation nor a socket can carry their endpoint. When it is full,
 * traffic_other[OTHER_OUT] counts: totals stay exact.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_FLOW_ROWS);
	__type(key, struct flow_key);
	__type(value, struct flow_row);
} flow_rows SEC(".maps");

/* The same for FLOW_IN, by remote address: strangers can't fill the other map. Beyond it, traffic_other[OTHER_IN]. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_CALLER_ROWS);
	__type(key, struct flow_key);
	__type(value, struct flow_row);
} caller_rows SEC(".maps");

/* A connection that was accepted on a served port, and was seen while it lived. */
struct accepted_flow {
	struct flow_progress progress;
	struct address remote;
	__be16 port; /* the local one */
	__u16 zero;
	__u32 version;
	__u64 reserved[4];
};

/*
 * Accepted socket -> what is counted of it. Made by the agent's walk over TCP sockets (flush.bpf.c), so a connection that
 * ends before the walk comes by has none. Written by that walk, the flush and sock_release; ends with the socket.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct accepted_flow);
} accepted SEC(".maps");

enum other {
	OTHER_OUT = 0,
	OTHER_IN = 1,
	OTHER_BLANK = 2, /* always zero: what a new row is made from */
	OTHER_COUNT = 4,
};

/* What found no room. Written by the programs. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OTHER_COUNT);
	__type(key, __u32);
	__type(value, struct flow_row);
} traffic_other SEC(".maps");

#define LATENCY_BUCKETS 24

struct latency_key {
	__u64 source;
	__u32 service; /* FLOW_IN: the local port, host byte order */
	__u32 direction;
};

/* Bucket i counts values below 2^i units, and not below 2^(i-1); the last one all that are larger. */
struct latency_row {
	__u64 rtt[LATENCY_BUCKETS]; /* least round trip of each connection, in us */
	__u64 duration[LATENCY_BUCKETS]; /* of established connections, in units of 256 us */
};

/* latency_key -> histograms. As flow_rows; what finds no room is in the rows' sums alone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct latency_key);
	__type(value, struct latency_row);
} latency_rows SEC(".maps");

/* [0] -> always zero: what a new latency row is made from. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct latency_row);
} latency_blank SEC(".maps");

/* What became of one connection. */
struct flow_record {
	__u64 at_ns; /* CLOCK_MONOTONIC: now */
	__u64 since_ns; /* of connect(); 0 = unknown, for accepted ones */
	__u64 sent;
	__u64 received;
	struct flow_key key;
	struct address asked; /* FLOW_OUT: what the app asked for */
	__be16 asked_port;
	__u8 end; /* enum flow_end */
	__u8 is_live; /* it has not ended: logged each interval_ns */
	__u32 pid; /* thread group that connected, or that closed an accepted one */
	__u32 retransmits;
	__u32 rtt_us; /* least round trip; 0 = none was measured */
	__u64 reserved[2];
};

/* flow_records, while TRAFFIC_LOG is set. Written by the programs without waking anybody, read by one agent. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} traffic_log SEC(".maps");

#define SOURCE_CACHE 16384

/*
 * Cgroup id, its low bits -> the source that its tasks are: further bits of the cgroup id in bits 48-63, and the source.
 * Written by connect4/6 and sock_release with one store, and cleared by the agent when it forgets a source's name.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SOURCE_CACHE);
	__type(key, __u32);
	__type(value, __u64);
} source_cache SEC(".maps");

/* Source -> its name. Inserted by connect4/6 and sock_release, read and deleted by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct unit_name);
} source_names SEC(".maps");

enum label_kind {
	LABEL_SERVICE = 1, /* host:port */
	LABEL_ENDPOINT = 2, /* istiod's "workload;namespace;canonical service;revision;cluster" */
};

struct label_key {
	__u32 kind;
	__u32 id;
};

struct label {
	char byte[344]; /* the text, then zeros: one at least */
};

/* What rows are called when istiod no longer says it. Written and read by agents alone; grows with services and endpoints in use. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_FLOW_ROWS);
	__type(key, struct label_key);
	__type(value, struct label);
} flow_labels SEC(".maps");

struct retired_key {
	__u64 source;
	__u64 label; /* hash of the text */
	__u8 direction;
	__u8 zero[7];
};

struct retired_row {
	struct flow_row sum;
	struct label label; /* service, newline, destination */
};

/*
 * Sums of flow_rows that were deleted, by what they are called. Written and read by agents alone. Beyond its size what is
 * deleted is added to the entry with the label 0.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct retired_key);
	__type(value, struct retired_row);
} retired_rows SEC(".maps");

/* A row on its way into retired_rows: what is to be stored is absolute, so that it can be done again. */
struct retirement {
	__u64 pending; /* 1 = all that follows is to be done; stored last */
	struct flow_key from;
	struct retired_key to;
	struct retired_row sum;
};

/* [0] -> the retirement that is under way. Written by the agent that has the locks, read by the next one. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct retirement);
} retirement SEC(".maps");

/* See table_records. */
union traffic_records {
	struct flow_record flow_record;
	enum label_kind label_kind;
	enum traffic_flag traffic_flag;
	enum flow_direction flow_direction;
	enum flow_end flow_end;
	enum other other;
} traffic_records SEC(".layout");
