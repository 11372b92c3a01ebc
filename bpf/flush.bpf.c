// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Brings the rows of connections that live up to date. Each read of this iterator visits the sockets that hold our storage,
 * in every network namespace. No socket is locked meanwhile: only lower bounds are taken, each from one word, and what is
 * missing is added at the connection's end.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "include/flow.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_iter__bpf_sk_storage_map {
	struct sock *sk;
};

#pragma clang attribute pop

/* Whether one of the intervals that began with the connection has ended since the flush before. */
static __always_inline bool is_due(const struct traffic *set, __u64 since_ns)
{
	__u64 interval = set->interval_ns;

	if (!interval || !(set->flags & TRAFFIC_LOG) || since_ns >= set->flushed_ns || set->flushed_ns >= set->flush_ns)
		return false;
	return (set->flush_ns - since_ns) / interval != (set->flushed_ns - since_ns) / interval;
}

#ifdef KMESH_NO_FETCH_ATOMICS
/* Compiled there, never loaded. */
#define take_back(word, from, to) (void)(*(word) = (to))
#else
#define take_back(word, from, to) (void)__sync_val_compare_and_swap(word, from, to)
#endif

/*
 * Adds to `counter` what `now` exceeds `done`, unless another connection has begun on the socket since `now` was read.
 * begin_flow() writes since_ns before it clears `done`: when this moved a `done` of the next connection, since_ns differs.
 */
static __always_inline bool settle(struct socket_state *state, __u64 since_ns, __u64 *done, __u64 now, __u64 *counter)
{
	__u64 difference = advance(done, now);

	if (!difference)
		return false;
	if (!is_same_flow(state, since_ns)) {
		take_back(done, now, now - difference);
		return false;
	}
	__sync_fetch_and_add(counter, difference);
	return true;
}

static __always_inline void settle32(struct socket_state *state, __u64 since_ns, __u32 *done, __u32 now, __u64 *counter)
{
	__u32 difference = advance32(done, now);

	if (!difference)
		return;
	if (is_same_flow(state, since_ns))
		__sync_fetch_and_add(counter, difference);
	else
		take_back(done, now, now - difference);
}

SEC("iter/bpf_sk_storage_map")
int flush(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct traffic *set = traffic_settings();
	struct sock *sk = ctx->sk;
	struct socket_state *state;
	struct tcp_sock *tcp;
	struct flow_row *row;
	struct flow_key key;
	__u64 since_ns, acked, received;
	bool news;

	if (!sk || !set)
		return 0;
	tcp = (struct tcp_sock *)bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	state = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!state || !state->flow)
		return 0;
	since_ns = *(volatile __u64 *)&state->since_ns;
	key = key_of(state);
	news = state->flow == FLOW_BEGUN;
	row = open_flow(state, &key, since_ns);
	if (!row)
		return 0;
	/* A SYN and a FIN may be in the one, a FIN in the other. */
	acked = tcp->bytes_acked;
	received = tcp->bytes_received;
	if (!state->flow || !is_same_flow(state, since_ns))
		return 0;
	if (acked > 2)
		news |= settle(state, since_ns, &state->flushed_sent, acked - 2, &row->sent);
	if (received > 1)
		news |= settle(state, since_ns, &state->flushed_received, received - 1, &row->received);
	settle32(state, since_ns, &state->flushed_retransmits, tcp->total_retrans, &row->retransmits);
	if (news)
		*(volatile __u64 *)&row->used_ns = set->flush_ns;
	if (is_due(set, since_ns)) {
		struct flow_record *record = bpf_ringbuf_reserve(&traffic_log, sizeof(*record), 0);

		if (!record) {
			__sync_fetch_and_add(&set->unlogged, 1);
			return 0;
		}
		__builtin_memset(record, 0, sizeof(*record));
		record->at_ns = set->flush_ns;
		record->since_ns = since_ns;
		record->sent = acked > 2 ? acked - 2 : 0;
		record->received = received > 1 ? received - 1 : 0;
		record->key = key;
		record->asked = state->asked;
		record->asked_port = state->asked_port;
		record->is_live = 1;
		record->pid = state->pid;
		record->retransmits = tcp->total_retrans;
		record->rtt_us = tcp->rtt_min.s[0].v + 1 ? tcp->rtt_min.s[0].v : 0;
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
