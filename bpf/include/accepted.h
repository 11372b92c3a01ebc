/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Counts connections that this machine accepted, at their end. They have no storage: a table of served ports tells them. */
#include "flow-end.h"

#ifndef AF_INET6
#define AF_INET6 10
#endif

static __always_inline bool is_served(__be16 port)
{
	__u32 host = bpf_ntohs(port);
	__u32 at = host / 64;
	__u64 *word = bpf_map_lookup_elem(&served_ports, &at);

	return word && *(volatile __u64 *)word >> (host & 63) & 1;
}

static __always_inline __be16 local_port(const struct sock *sk)
{
	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		const struct inet_sock *inet = bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct inet_sock));

		return inet->inet_sport;
	}
	return BPF_CORE_READ((const struct inet_sock *)sk, inet_sport);
}

static __always_inline struct address remote_address(const struct sock *sk)
{
	struct address remote = {};

	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6) {
		bpf_probe_read_kernel(&remote, sizeof(remote), &sk->__sk_common.skc_v6_daddr);
		return remote;
	}
	remote.word[2] = bpf_htonl(0xffff);
	remote.word[3] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	return remote;
}

/* A connection that was accepted on a served port has ended: its socket has no storage, and is counted now as a whole. */
__noinline int count_accepted(struct bpf_sock *ctx, __u32 tcp_state)
{
	const struct sock *sk = (const struct sock *)ctx;
	struct traffic *set = traffic_settings();
	struct facts facts;
	struct flow_sum sum = {};
	struct flow_key key = {
		.direction = FLOW_IN,
		.protocol = IPPROTO_TCP,
		.port = local_port(sk),
	};
	struct flow_row *row;
	__u64 now;

	if (!set || !is_served(key.port) || tcp_state == BPF_TCP_LISTEN || tcp_state == BPF_TCP_SYN_SENT)
		return 0;
	read_facts(sk, &facts);
	if (!facts.max_window)
		return 0;
	now = bpf_ktime_get_ns();
	sum.end = end_of(ctx, tcp_state, 0, 0) & (FLOW_ENDS - 1);
	find_bytes(tcp_state, &facts, &sum);
	key.source = current_source();
	key.remote = remote_address(sk);
	row = find_row(&caller_rows, &key, OTHER_IN);
	if (row) {
		__sync_fetch_and_add(&row->opened, 1);
		__sync_fetch_and_add(&row->sent, sum.sent);
		__sync_fetch_and_add(&row->received, sum.received);
		__sync_fetch_and_add(&row->retransmits, sum.retransmits);
		add_end(row, &sum, 0, now);
		count_latency(key.source, bpf_ntohs(key.port), FLOW_IN, sum.rtt_us, 0);
	}
	if (set->flags & TRAFFIC_LOG)
		log_end(set, &key, &sum, NULL, now);
	return 0;
}
