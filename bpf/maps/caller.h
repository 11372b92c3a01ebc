/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Callers of this machine's apps whose connections `kmesh tunnel` ends. The app's socket is connected to the tunnel, from an
 * address of this machine; getpeername() and accept() show it the caller instead, and the caller is who its traffic is
 * counted for. Part of keep/: no layout here ever changes.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "address.h"

#define CALLERS 65536

/* The tunnel's end of the connection, at the address that the app's end has, too; and the app's port. */
struct caller_key {
	struct address address;
	__be16 port;
	__be16 app_port;
};

struct caller {
	struct address address;
	__be16 port;
	__u16 zero;
	__u32 pid; /* the tunnel's process, and when it started, so that the next one removes what a crash left */
	__u64 start_ticks;
	__u64 reserved[2];
};

/*
 * Connection of the tunnel to an app -> who called. Written by the tunnel before it connects and removed when the connection
 * ends; read by getpeername4/6. CALLERS at most: who finds no room is shown the tunnel's address.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CALLERS);
	__type(key, struct caller_key);
	__type(value, struct caller);
} callers SEC(".maps");

struct carried {
	struct address remote; /* the caller in the keys of caller_rows: its address, or a key of `peers` */
	__be16 port; /* those of the key: memory that was freed and taken again shows others */
	__be16 app_port;
	__u32 pid; /* the tunnel's process, and when it started */
	__u64 start_ticks;
	__u64 until_ns; /* CLOCK_MONOTONIC: when the tunnel's end was closed; 0 = it is open */
	__u64 reserved[2];
};

/*
 * Connection of the tunnel to an app (as in `callers`) -> who its traffic is counted for. Written by the tunnel before it
 * connects, read by sock_release and see_accepted, removed by sock_release. The app's end may outlive the tunnel's: then the
 * tunnel writes until_ns, and removes the entry when that is long ago. CALLERS at most: who finds no room is counted as a
 * connection from this machine's own address.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CALLERS);
	__type(key, struct caller_key);
	__type(value, struct carried);
} carried SEC(".maps");

#define MAX_PEERS 4096

struct peer {
	struct address address;
	__u64 reserved[2];
	char text[256]; /* "istio spiffe://...", then zeros: one at least */
};

/*
 * Caller by mutual TLS -> its address, the way and its identity. The key is ff00::/64 and a hash of the three: no packet comes
 * from there, and every tunnel gives the same key. No program uses it. Inserted by the tunnel, read by agents, removed by them
 * when no row and no connection has it. When it is full, keys without an entry count: all other callers of one way together.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PEERS);
	__type(key, struct address);
	__type(value, struct peer);
} peers SEC(".maps");

/*
 * Socket -> 1: the tunnel accepts on it, or has accepted it. Written by the tunnel for its listening sockets; what they accept
 * inherits it. Read by sock_release and see_accepted: the app's end of the same connection is the one that is counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, __u64);
} tunnel_sockets SEC(".maps");
