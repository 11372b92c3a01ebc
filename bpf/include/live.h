/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

#include "eject.h"
#include "keep.h"
#include "outcome.h"

/*
 * Live connections: a redirected socket counts from its connect() until it is closed or connects elsewhere, once
 * however that comes about, and then tells how its connect() went. connect4/6 and sock_release of one socket never run
 * at the same time: the one is inside a system call on a descriptor, the other runs when the last one is gone.
 */
static __always_inline void begin_connection(struct socket_state *state, struct cluster_load *cluster)
{
	struct endpoint_load *endpoint = chunked_lookup(&endpoint_loads, state->endpoint);

	if (endpoint)
		__sync_fetch_and_add(&endpoint->live, 1);
	if (cluster)
		__sync_fetch_and_add(&cluster->live, 1);
	state->flags |= SOCKET_COUNTED;
}

/* `sk` is the TCP socket, or the first subflow of an MPTCP socket, and `tcp_state` its state now. */
static __always_inline void end_connection(struct socket_state *state, const struct sock *sk, __u32 tcp_state)
{
	struct endpoint_load *endpoint;
	struct cluster_load *cluster;

	if (!(state->flags & SOCKET_COUNTED))
		return;
	state->flags &= ~SOCKET_COUNTED;
	endpoint = chunked_lookup(&endpoint_loads, state->endpoint);
	cluster = chunked_lookup(&cluster_loads, state->cluster);
	if (endpoint)
		__sync_fetch_and_add(&endpoint->live, -1);
	if (cluster)
		__sync_fetch_and_add(&cluster->live, -1);
	if (endpoint)
		outlier_update(state, endpoint, outcome_of(sk, tcp_state, state->sequence));
}
