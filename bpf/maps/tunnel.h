/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Tunnel targets: endpoints that `kmesh tunnel` reaches for the apps, by mutual TLS or HBONE. For the programs such an
 * endpoint is one at 127.a.b.c:TUNNEL_PORT, and a.b.c, which is its id + TUNNEL_FIRST_NUMBER, leads the tunnel to the record
 * here. No program reads these maps. Part of keep/: no layout here ever changes.
 */
#include "address.h"
#include "chunked.h"
#include "keep.h"
#include "tunnel-port.h"

struct tunnel_target {
	struct address address; /* the peer's own */
	__be16 port;
	__u16 zero;
	__u32 transport; /* 0 = the endpoint is reached directly, or its id is free */
	__u32 cluster;
	__u32 service;
	__u64 reserved[4];
};

/* Endpoint id -> where the tunnel goes. Written by the agent before an endpoint leads there, read by the tunnel. Grows. */
struct {
	CHUNKED(struct tunnel_target);
} tunnel_targets SEC(".maps");

/*
 * Transport id -> its JSON (src/mesh/transport.ts). Written by the agent before a target names it, read by the tunnel. One
 * for all targets that are reached in the same way. Grows.
 */
struct {
	CHUNKED(struct name_ref);
} transports SEC(".maps");

/* The bytes of that JSON. Grows. */
struct {
	CHUNKED(struct name_line);
} transport_lines SEC(".maps");

union tunnel_records {
	struct tunnel_target tunnel_target;
} tunnel_records SEC(".layout");
