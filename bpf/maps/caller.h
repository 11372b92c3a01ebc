/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Callers of this machine's apps whose connections `kmesh tunnel` ends. The app's socket is connected to the tunnel, from an
 * address of this machine; getpeername() and accept() show it the caller instead. Part of keep/: no layout here ever changes.
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
