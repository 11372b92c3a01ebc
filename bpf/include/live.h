/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

#include "keep.h"

/*
 * Live connections: a redirected socket counts from its connect() until it is closed or connects elsewhere, once
 * however that comes about. connect4/6 and sock_release of one socket never run at the same time: the one is inside
 * a system call on a descriptor, the other runs when the last one is gone.
 */
static __always_inline void add_live(const struct socket_state *state, __s64 change)
{
	struct endpoint_load *endpoint = chunked_lookup(&endpoint_loads, state->endpoint);
	struct cluster_load *cluster = chunked_lookup(&cluster_loads, state->cluster);

	if (endpoint)
		__sync_fetch_and_add(&endpoint->live, change);
	if (cluster)
		__sync_fetch_and_add(&cluster->live, change);
}

static __always_inline void count_live(struct socket_state *state)
{
	add_live(state, 1);
	state->flags |= SOCKET_COUNTED;
}

static __always_inline void uncount_live(struct socket_state *state)
{
	if (!(state->flags & SOCKET_COUNTED))
		return;
	state->flags &= ~SOCKET_COUNTED;
	add_live(state, -1);
}
