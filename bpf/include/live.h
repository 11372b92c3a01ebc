/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

#include "eject.h"
#include "../maps/keep.h"
#include "outcome.h"
#include "recent.h"

/*
 * Counts live connections. A redirected socket counts once, from its connect() until its connection ends, its app closes it
 * or it connects again; the end also says how the connect() went. connect4/6 and sock_release of one socket never run at the
 * same time: connect() holds a descriptor, and sock_release runs after the last descriptor is closed.
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

/* Clears the socket's mark that it is counted. Of several callers at the same time, one gets true. */
static __always_inline bool take_count(struct socket_state *state)
{
	/* The word with version and flags: atomic operations need 32 bits. */
	__u32 *word = (__u32 *)state;
	const __u32 mark = (__u32)SOCKET_COUNTED << 16;

#ifdef KMESH_NO_FETCH_ATOMICS
	__u32 old = *(volatile __u32 *)word;

	*(volatile __u32 *)word = old & ~mark;
	return old & mark;
#else
	return __sync_fetch_and_and(word, ~mark) & mark;
#endif
}

/* `sk` is the TCP socket, or the first subflow of an MPTCP socket, and `tcp_state` its state now. */
static __always_inline void end_connection(struct socket_state *state, const struct sock *sk, __u32 tcp_state)
{
	struct endpoint_load *endpoint;
	struct cluster_load *cluster;
	enum outcome outcome;

	if (!(state->flags & SOCKET_COUNTED) || !take_count(state))
		return;
	endpoint = chunked_lookup(&endpoint_loads, state->endpoint);
	cluster = chunked_lookup(&cluster_loads, state->cluster);
	if (endpoint)
		__sync_fetch_and_add(&endpoint->live, -1);
	if (cluster)
		__sync_fetch_and_add(&cluster->live, -1);
	if (!endpoint)
		return;
	outcome = outcome_of(sk, tcp_state, state->sequence);
	if (outcome == OUTCOME_FAILED)
		record_failure(state);
	outlier_update(state, endpoint, outcome);
}

/*
 * The TCP socket that connected: the socket itself, or the first subflow of an MPTCP socket. It may be NULL, so read it only
 * with BPF_CORE_READ.
 */
static __always_inline const struct sock *connecting_socket(const struct socket_state *state, const struct sock *sk)
{
	if (can_find_mptcp_socket() && state->flags & SOCKET_MPTCP)
		return BPF_CORE_READ((const struct mptcp_sock *)sk, first);
	return sk;
}

/*
 * Ends the connection of a socket in the state `tcp_state`. Of a closed MPTCP socket, only the subflow says whether connect()
 * failed or the connection ended.
 */
static __always_inline void end_socket(struct socket_state *state, const struct sock *sk, __u32 tcp_state)
{
	const struct sock *tcp = connecting_socket(state, sk);

	if (tcp != sk && tcp_state == BPF_TCP_CLOSE)
		tcp_state = BPF_CORE_READ(tcp, __sk_common.skc_state);
	end_connection(state, tcp, tcp_state);
}
