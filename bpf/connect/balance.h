/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Which slot of a cluster's run a connection takes, by the cluster's way of balancing. */
#include "../include/walk.h"
#include "request.h"

/* Clusters and splits take turns with one counter for all CPUs; that is what makes weights exact. */
static __always_inline __u64 next_turn(struct cluster_load *load, bool v6_run)
{
	__u64 *turn;

	if (!load)
		return bpf_get_prandom_u32();
	turn = v6_run ? &load->turn_v6 : &load->turn;
#ifdef KMESH_NO_FETCH_ATOMICS
	/* Two CPUs within these few nanoseconds may get the same turn, and one is left out. */
	__sync_fetch_and_add(turn, 1);
	return *(volatile __u64 *)turn;
#else
	return __sync_fetch_and_add(turn, 1);
#endif
}

/*
 * Live connections of the endpoint; those that are ejected beyond `horizon` have more than any other. Signed: a count
 * that damage took below zero must not make the endpoint look full.
 */
static __always_inline __s64 load_of(__u32 endpoint, __u64 horizon)
{
	struct endpoint_load *load = chunked_lookup(&endpoint_loads, endpoint);

	if (!load)
		return 0;
	return load->ejected_until_ns > horizon ? (__s64)(~0ull >> 1) : (__s64)load->live;
}

/* Power of two choices: of two different slots of a longer run the one whose endpoint has fewer live connections. */
static __always_inline __u32 less_loaded_slot(const struct run *run, __u64 horizon)
{
	__u32 first = bpf_get_prandom_u32() % run->count;
	__u32 second, one, other;

	one = slot_at(run, first);
	second = (first + 1 + bpf_get_prandom_u32() % (run->count - 1)) % run->count;
	other = slot_at(run, second);
	return load_of(other, horizon) < load_of(one, horizon) ? other : one;
}

static __always_inline __u32 mix(__u32 hash, __u32 word)
{
	hash ^= word;
	hash *= 0xcc9e2d51;
	hash ^= hash >> 15;
	hash *= 0x1b873593;
	return hash ^ hash >> 13;
}

/*
 * The socket's own address when it is bound, else the node's. To an IPv4 destination an IPv6 socket goes by the same
 * address as an IPv4 one.
 */
static __always_inline __u32 source_hash(struct bpf_sock_addr *ctx, const struct settings *set,
					 const struct request *req)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 hash = 0;

	if (is_mapped(&req->address)) {
		__u32 source = 0;

		if (sk)
			source = req->v6_socket ? sk->src_ip6[3] : sk->src_ip4;
		return mix(hash, source ? source : (__u32)set->node_v4);
	}
	if (sk && (sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | sk->src_ip6[3])) {
		hash = mix(hash, sk->src_ip6[0]);
		hash = mix(hash, sk->src_ip6[1]);
		hash = mix(hash, sk->src_ip6[2]);
		return mix(hash, sk->src_ip6[3]);
	}
	hash = mix(hash, (__u32)set->node_v6[0]);
	hash = mix(hash, (__u32)(set->node_v6[0] >> 32));
	hash = mix(hash, (__u32)set->node_v6[1]);
	return mix(hash, (__u32)(set->node_v6[1] >> 32));
}

/* `horizon`: see load_of. */
static __always_inline __u32 choose_slot(struct bpf_sock_addr *ctx, const struct settings *set,
					 const struct request *req, const struct decision *made,
					 const struct descriptor *desc, const struct run *run, __u64 horizon)
{
	if (run->count == 1)
		return slot_at(run, 0);
	switch (desc->balance) {
	case BALANCE_RANDOM:
		return slot_at(run, bpf_get_prandom_u32() % run->count);
	case BALANCE_LEAST_REQUEST:
		return less_loaded_slot(run, horizon);
	case BALANCE_HASH:
		return slot_at(run, source_hash(ctx, set, req) % run->count);
	default:
		return slot_at(run, next_turn(made->load, run->first_line == desc->v6.first_line) % run->count);
	}
}
