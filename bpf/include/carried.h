/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Connections that `kmesh tunnel` carries to an app. It connects from the address that it connects to, so all other accepted
 * sockets cost one comparison.
 */
#include "served.h"
#include "../maps/caller.h"

/* After its end was closed, packets of a connection may be under way for so long. */
#define CARRIED_REST_NS 1000000000ull

/* Whether the tunnel accepted the socket: the app's end of the same connection is counted. */
#define is_tunnels(sk) (may_have_storage(sk) && bpf_sk_storage_get(&tunnel_sockets, sk, NULL, 0))

static __always_inline bool is_own_address(const struct sock *sk, const struct address *remote)
{
	struct address own = {};

	if (FIELD(sk, struct sock, __sk_common.skc_family) != AF_INET6)
		return FIELD(sk, struct sock, __sk_common.skc_rcv_saddr) == remote->word[3];
	bpf_probe_read_kernel(&own, sizeof(own), &sk->__sk_common.skc_v6_rcv_saddr);
	return own.word[3] == remote->word[3] && own.word[0] == remote->word[0] && own.word[1] == remote->word[1] &&
	       own.word[2] == remote->word[2];
}

/* Whether the entry is of this socket, and not of one before it with the same addresses and ports. */
static __always_inline bool is_of(const struct sock *sk, __u64 until_ns)
{
	return !until_ns || FIELD(sk, struct tcp_sock, tcp_mstamp) * 1000 <= until_ns + CARRIED_REST_NS;
}

/*
 * Finds the entry in `carried` of an accepted socket that serves `port`: its key, and who called. `remote` is the socket's own
 * until then.
 */
static __noinline bool find_carried(const struct sock *sk, __be16 port, struct caller_key *key, struct address *remote)
{
	/* An entry whose until_ns is being written may be missed, or be another one already, once. */
	for (int i = 0; i < 2; i++) {
		struct carried *entry;
		struct address caller;
		__u64 until_ns;

		key->address = *remote;
		key->port = FIELD(sk, struct sock, __sk_common.skc_dport);
		key->app_port = port;
		entry = bpf_map_lookup_elem(&carried, key);
		if (!entry)
			continue;
		caller = entry->remote;
		until_ns = entry->until_ns;
		barrier();
		if (*(volatile __be16 *)&entry->port != key->port || *(volatile __be16 *)&entry->app_port != port)
			continue;
		if (!is_of(sk, until_ns))
			return false;
		*remote = caller;
		return true;
	}
	return false;
}
