/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* What a socket asks for, and what is decided for it. */
#include "../maps/keep.h"
#include "../maps/tables.h"
#include "../maps/verdict.h"

/* What a socket asks for. */
struct request {
	struct address address;
	__be16 port;
	bool v6_socket;
};

/* What was decided. `reason` is REASON_NONE unless it is a refusal. */
struct decision {
	enum action action;
	enum reason reason;
	__u32 service;
	__u32 cluster;
	__u32 endpoint_id;
	__u64 now; /* CLOCK_MONOTONIC */
	struct endpoint *endpoint;
	__be16 port; /* not 0: the address stays, the port is this one */
	struct cluster_load *load; /* of the cluster that serves */
};

static __always_inline void refuse(struct decision *made, enum reason reason)
{
	made->action = ACTION_REFUSE;
	made->reason = reason;
}
