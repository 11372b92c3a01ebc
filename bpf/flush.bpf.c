// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Brings the rows of connections that live up to date: two iterators over the sockets that hold our storage, in every network
 * namespace, and one over the TCP sockets of the agent's namespace, which finds connections that were accepted. The first two
 * lock no socket: only lower bounds are taken, each from one word, and what is missing is added at the connection's end.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "include/carried.h"
#include "include/flow.h"
#include "include/served.h"
#include "include/socket.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_iter__bpf_sk_storage_map {
	struct sock *sk;
};

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 seq_num; /* how many were visited before */
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
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
#define exchange(word, from, to) ((void)(from), *(word) = (to))
#else
#define exchange(word, from, to) __sync_val_compare_and_swap(word, from, to)
#endif

/* The lower bounds. A SYN and a FIN may be in `bytes_acked`, a FIN in `bytes_received`. */
struct live {
	__u64 sent;
	__u64 received;
	__u32 retransmits;
};

static __always_inline void read_live(const struct tcp_sock *tcp, struct live *live)
{
	__u64 acked = tcp->bytes_acked;
	__u64 received = tcp->bytes_received;

	live->sent = acked > 2 ? acked - 2 : 0;
	live->received = received > 1 ? received - 1 : 0;
	live->retransmits = tcp->total_retrans;
}

/*
 * Adds to `counter` by how much `done` was moved from `now - difference` to `now`, unless another connection has begun on
 * the socket since `now` was read. begin_flow() writes since_ns before it clears `done`: when this moved a `done` of the next
 * connection, since_ns differs, and the move is taken back. Gives whether it added anything.
 */
#define SETTLE(progress, since, done, now, difference, counter)               \
	({                                                                    \
		bool is_news = (difference) && is_same_flow(progress, since); \
                                                                              \
		if (is_news)                                                  \
			__sync_fetch_and_add(counter, difference);            \
		else if (difference)                                          \
			(void)exchange(done, now, (now) - (difference));      \
		is_news;                                                      \
	})

/* Adds what is new since the last flush. Gives whether anything is. */
static __always_inline bool settle(struct flow_progress *progress, __u64 since_ns, const struct live *live,
				   struct flow_row *row)
{
	__u64 sent = advance(&progress->sent, live->sent);
	__u64 received = advance(&progress->received, live->received);
	__u32 retransmits = advance32(&progress->retransmits, live->retransmits);
	bool news;

	news = SETTLE(progress, since_ns, &progress->sent, live->sent, sent, &row->sent);
	news |= SETTLE(progress, since_ns, &progress->received, live->received, received, &row->received);
	SETTLE(progress, since_ns, &progress->retransmits, live->retransmits, retransmits, &row->retransmits);
	return news;
}

/* A record of a connection that lives. `asked` is NULL for one that was accepted. */
static __always_inline void log_live(struct traffic *set, const struct flow_key *key, const struct live *live,
				     const struct tcp_sock *tcp, const struct socket_state *asked)
{
	struct flow_record *record = bpf_ringbuf_reserve(&traffic_log, sizeof(*record), 0);

	if (!record) {
		__sync_fetch_and_add(&set->unlogged, 1);
		return;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->at_ns = set->flush_ns;
	record->sent = live->sent;
	record->received = live->received;
	record->key = *key;
	record->is_live = 1;
	record->retransmits = live->retransmits;
	record->rtt_us = tcp->rtt_min.s[0].v + 1 ? tcp->rtt_min.s[0].v : 0;
	if (asked) {
		record->since_ns = asked->since_ns;
		record->asked = asked->asked;
		record->asked_port = asked->asked_port;
		record->pid = asked->pid;
	}
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

SEC("iter/bpf_sk_storage_map")
int flush(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct traffic *set = traffic_settings();
	struct sock *sk = ctx->sk;
	struct socket_state *state;
	struct live live;
	struct tcp_sock *tcp;
	struct flow_row *row;
	struct flow_key key;
	__u64 since_ns;
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
	row = open_flow(&state->progress, &key, FLOW_OUT, since_ns);
	if (!row)
		return 0;
	read_live(tcp, &live);
	if (!*(volatile __u32 *)&state->flow || !is_same_flow(&state->progress, since_ns))
		return 0;
	news |= settle(&state->progress, since_ns, &live, row);
	if (news)
		*(volatile __u64 *)&row->used_ns = set->flush_ns;
	if (is_due(set, since_ns))
		log_live(set, &key, &live, tcp, state);
	return 0;
}

static __always_inline bool is_connected(__u8 state)
{
	return state != BPF_TCP_LISTEN && state != BPF_TCP_SYN_SENT && state != BPF_TCP_SYN_RECV &&
	       state != BPF_TCP_NEW_SYN_RECV && state != BPF_TCP_CLOSE && state != BPF_TCP_TIME_WAIT;
}

/* Counts an accepted connection as opened, and what it has moved so far. */
static __always_inline void flush_one(struct traffic *set, struct accepted_flow *flow, struct tcp_sock *tcp)
{
	__u32 before = *(volatile __u32 *)&flow->progress.flow;
	struct flow_key key = {
		.source = flow->progress.source,
		.direction = FLOW_IN,
		.protocol = IPPROTO_TCP,
		.port = flow->port,
	};
	__u64 since_ns = flow->progress.since_ns;
	struct flow_row *row;
	struct live live;
	bool news;

	if (before == FLOW_NONE || before == FLOW_ENDED)
		return;
	key.remote = flow->remote;
	news = before == FLOW_BEGUN;
	row = open_flow(&flow->progress, &key, FLOW_IN, since_ns);
	if (!row)
		return;
	read_live(tcp, &live);
	news |= settle(&flow->progress, since_ns, &live, row);
	if (news)
		*(volatile __u64 *)&row->used_ns = set->flush_ns;
	if (is_due(set, since_ns))
		log_live(set, &key, &live, tcp, NULL);
}

SEC("iter/bpf_sk_storage_map")
int flush_accepted(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct traffic *set = traffic_settings();
	struct sock *sk = ctx->sk;
	struct accepted_flow *flow;
	struct tcp_sock *tcp;

	if (!sk || !set)
		return 0;
	tcp = (struct tcp_sock *)bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	flow = bpf_sk_storage_get(&accepted, sk, NULL, 0);
	if (flow)
		flush_one(set, flow, tcp);
	return 0;
}

/*
 * Whether an app holds the socket, so that its sock_release is still to run. A connection that waits for accept() has no
 * struct socket, and the file of one that is being closed has no references any more.
 */
static __always_inline bool is_held(const struct sock *sk)
{
	struct socket *sock = BPF_CORE_READ(sk, sk_socket);
	struct file *file = sock ? BPF_CORE_READ(sock, file) : NULL;
	struct file___6_13 *newer = (void *)file;
	__s64 more;

	if (!file)
		return false;
	/* Its only member lies in the kernel's own types deeper than here. */
	if (bpf_core_field_exists(newer->f_ref))
		return !bpf_core_read(&more, sizeof(more), &newer->f_ref) && more >= 0;
	return BPF_CORE_READ(file, f_count.counter) > 0;
}

/*
 * The unit in whose cgroup the listener was made, which is the one that accepts as a rule; 0 = another one may be: systemd
 * makes the listeners of socket units, and whoever closes the connection says who had it.
 */
static __always_inline __u64 accepting_source(const struct sock *sk)
{
	struct kernfs_node *node = cgroup_of(sk);
	const union {
		char text[12];
		__u32 word[3];
	} init = { .text = "init.scope" };
	union {
		char text[12];
		__u32 word[3];
	} name = {};
	__u64 source;

	if (!node)
		return 0;
	bpf_probe_read_kernel_str(&name, sizeof(name), BPF_CORE_READ(node, name));
	if (name.word[0] == init.word[0] && name.word[1] == init.word[1] && name.word[2] == init.word[2])
		return 0;
	source = cgroup_source(BPF_CORE_READ(node, id), (__u64)node);
	return source == SOURCE_BY_USER ? SOURCE_USER | BPF_CORE_READ(sk, sk_uid.val) : source;
}

/* After so many sockets the agent may do something else: about half a millisecond. */
#define PIECE 512

/* The agent reads one byte at a time, so this ends its read. */
static __always_inline void end_piece(struct bpf_iter_meta *meta)
{
	const char byte = 0;

	if (meta->seq_num % PIECE == PIECE - 1)
		bpf_seq_write(meta->seq, &byte, sizeof(byte));
}

/*
 * Visits each TCP socket of the agent's network namespace and gives storage to those that were accepted on a served port. The
 * storage counts nothing until it is certain that sock_release will find it: it is made first, then the socket is seen to be
 * held. sock_release runs after the last reference has gone, so it either finds the storage or makes is_held() false.
 */
SEC("iter/tcp")
int see_accepted(struct bpf_iter__tcp *ctx)
{
	struct traffic *set = traffic_settings();
	struct sock_common *common = ctx->sk_common;
	struct caller_key tunnel = {};
	struct accepted_flow *flow;
	struct tcp_sock *tcp;
	struct address remote;
	struct sock *sk;
	__be16 port;

	end_piece(ctx->meta);
	if (!common || !set || !is_connected(common->skc_state))
		return 0;
	tcp = (struct tcp_sock *)bpf_skc_to_tcp_sock(common);
	if (!tcp)
		return 0;
	sk = (struct sock *)tcp;
	port = ((struct inet_sock *)tcp)->inet_sport;
	if (!is_served(port) || is_kernel_socket(sk) || !is_held(sk))
		return 0;
	if (bpf_sk_storage_get(&sockets, tcp, NULL, 0) || bpf_sk_storage_get(&accepted, tcp, NULL, 0) ||
	    is_tunnels(tcp))
		return 0;
	remote = remote_address(sk);
	if (is_own_address(sk, &remote))
		find_carried(sk, port, &tunnel, &remote);
	flow = bpf_sk_storage_get(&accepted, tcp, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!flow)
		return 0;
	flow->progress.since_ns = bpf_ktime_get_ns();
	flow->progress.source = accepting_source(sk);
	flow->remote = remote;
	flow->port = port;
	/* A full barrier between the storage and the look at the socket's file. */
	exchange(&flow->version, 0, 1);
	if (!flow->progress.source || !is_held(sk))
		return 0;
	exchange(&flow->progress.flow, FLOW_NONE, FLOW_BEGUN);
	flush_one(set, flow, tcp);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
