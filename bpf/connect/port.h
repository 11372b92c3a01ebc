/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Another slot, where the port that a socket is bound to leads to the chosen endpoint already. */
#include "../include/eject.h"
#include "../include/walk.h"

/* Slots that are tried to find such an endpoint. */
#define PORT_RETRIES 8

#ifndef AF_INET
#define AF_INET 2
#endif

/*
 * Whether the port that this socket is bound to leads to the endpoint already, by whatever service: two connections can't
 * have both ends in common, and connect() would fail with EADDRNOTAVAIL. A socket that is bound to no address is taken to
 * have the node's.
 */
__noinline int is_port_taken(struct bpf_sock_addr *ctx, __u32 endpoint_id)
{
	__u32 zero = 0;
	const struct settings *set = bpf_map_lookup_elem(&settings, &zero);
	struct endpoint *endpoint = chunked_lookup(&endpoints, endpoint_id);
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk = ctx->sk, *other;
	int is_taken;

	if (!set || !endpoint || !endpoint->is_v4 || !sk)
		return 0;
	tuple.ipv4.saddr = endpoint->address.word[3];
	tuple.ipv4.sport = endpoint->port;
	tuple.ipv4.daddr = ctx->family == AF_INET ? sk->src_ip4 : 0;
	if (!tuple.ipv4.daddr)
		tuple.ipv4.daddr = set->node_v4;
	tuple.ipv4.dport = bpf_htons(sk->src_port);
	other = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!other)
		return 0;
	is_taken = other->state != BPF_TCP_LISTEN;
	bpf_sk_release(other);
	return is_taken;
}

/* `slot`, or one of the run to whose endpoint the socket's port does not lead yet; `slot` stays when none is found. */
__noinline __u32 slot_with_free_port(struct bpf_sock_addr *ctx, __u32 first_line, __u32 count, __u32 slot, __u64 now)
{
	__u32 index = bpf_get_prandom_u32();

	if (!count || !is_port_taken(ctx, slot))
		return slot;
	for (int i = 0; i < PORT_RETRIES; i++) {
		__u32 other = slot_of(first_line, (index + i) % count);

		if (!(other & SLOT_REFUSE) && !is_ejected(other, now) && !is_port_taken(ctx, other))
			return other;
	}
	return slot;
}
