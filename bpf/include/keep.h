/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What outlives every generation of tables and programs. A pinned map's value can never change its size, so each
 * record has room to grow; what is reserved is zero.
 */
#include "address.h"
#include "chunked.h"
#include "verdict.h"

enum socket_flag {
	SOCKET_REDIRECTED = 1,
	SOCKET_COUNTED = 2, /* it stands in the live counts */
};

struct socket_state {
	__u16 version;
	__u16 flags;
	__u32 service;
	__u32 cluster;
	__u32 endpoint;
	struct address asked; /* where the app wanted to go */
	__be16 asked_port;
	__u16 zero;
	__u32 reserved;
	__u64 since_ns; /* CLOCK_MONOTONIC at connect() */
	__u64 reserved2[2];
};

/* Socket -> what was decided for it. Written by connect4/6 and sock_release, read by getpeername; ends with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_state);
} sockets SEC(".maps");

struct endpoint_load {
	__u64 live; /* connections from connect() to the socket's close */
	__u64 reserved;
};

/* Endpoint id -> live connections. Written by connect4/6 and sock_release, read by least-request and the agent. */
struct {
	CHUNKED(struct endpoint_load);
} endpoint_loads SEC(".maps");

struct cluster_load {
	__u64 turn; /* of splits and of round robin over IPv4 endpoints, shared by all CPUs: shares are exact */
	__u64 live;
	__u64 turn_v6; /* of round robin over IPv6 endpoints: who uses both in turn must not skip half of either */
	__u64 reserved;
};

/* Cluster id -> turns and live connections. Written by connect4/6 and sock_release. */
struct {
	CHUNKED(struct cluster_load);
} cluster_loads SEC(".maps");

struct service_counters {
	__u64 redirected;
	__u64 passed;
	__u64 would_redirect; /* shadow mode */
	__u64 would_refuse;
	__u64 refused[REASON_COUNT];
};

/* Service id -> counters; id 0 counts what belongs to no service. Written by connect4/6, read by the agent. */
struct {
	CHUNKED(struct service_counters);
} service_counts SEC(".maps");

/* Thread group id -> its start in clock ticks since boot: agents, whose own connections are never governed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} agents SEC(".maps");

/* Cgroup id -> 1: this cgroup and all below it are governed. Written by the agent, few entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} enrolled SEC(".maps");

/* See table_records. */
union keep_records {
	struct endpoint_load endpoint_load;
	struct cluster_load cluster_load;
	struct service_counters service_counters;
} keep_records SEC(".layout");
