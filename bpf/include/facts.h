/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Reads the kernel's socket when a connection ends. The fields that are valid in each state were tested on 5.10, 6.1 and
 * 6.18 against the counts of the apps at both ends.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"
#include "../maps/traffic.h"

/* Of skc_flags. */
#define SOCK_DONE 1 /* the peer's FIN came */
#define SOCK_LINGER 4

#define NO_RTT 0xffffffff
/* A SYN is sent again after so long. */
#define SYN_TIMEOUT_NS 1000000000ull

/* The values of the kernel's socket at its end. */
struct facts {
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u64 bytes_received;
	__u32 write_seq;
	__u32 snd_nxt;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 max_window;
	__u32 total_retrans;
	__u32 rtt_us;
	__u32 flags;
};

/* How much, and how it ended. */
struct flow_sum {
	__u64 sent;
	__u64 received;
	__u64 failed_ns;
	__u32 retransmits;
	__u32 rtt_us; /* 0 = none was measured */
	__u32 end; /* enum flow_end */
};

static __always_inline void read_facts(const struct sock *sk, struct facts *facts)
{
#define TCP(field) FIELD(sk, struct tcp_sock, field)
	facts->bytes_sent = TCP(bytes_sent);
	facts->bytes_retrans = TCP(bytes_retrans);
	facts->bytes_received = TCP(bytes_received);
	facts->write_seq = TCP(write_seq);
	facts->snd_nxt = TCP(snd_nxt);
	facts->rcv_nxt = TCP(rcv_nxt);
	facts->copied_seq = TCP(copied_seq);
	facts->max_window = TCP(max_window);
	facts->total_retrans = TCP(total_retrans);
	facts->rtt_us = TCP(rtt_min.s[0].v);
	facts->flags = FIELD(sk, struct sock, __sk_common.skc_flags);
#undef TCP
}

static __always_inline bool has_flag(const struct facts *facts, int bit)
{
	return facts->flags >> bit & 1;
}

/*
 * The programs of an object get their sockets in the same way: those of release.bpf.c are called with it, those of
 * connect.bpf.c (FLOW_AT_CONNECT) with a context that begins with a pointer to it.
 */
#ifdef FLOW_AT_CONNECT
#define FLOW_CONTEXT struct bpf_sock_addr
#define STORAGE_OWNER(ctx) ((ctx)->sk)

static __always_inline const struct sock *socket_of(FLOW_CONTEXT *ctx)
{
	struct sock *sk = NULL;

	bpf_probe_read_kernel(&sk, sizeof(sk), ctx);
	return sk;
}
#else
#define FLOW_CONTEXT struct bpf_sock
#define STORAGE_OWNER(ctx) (ctx)

static __always_inline const struct sock *socket_of(FLOW_CONTEXT *ctx)
{
	return (const struct sock *)ctx;
}
#endif

/* Nanoseconds from `since_ns` to when the socket was last busy: an app may close it much later. */
static __always_inline __u64 busy_ns(const struct sock *sk, __u64 since_ns)
{
	__u64 last_ns = FIELD(sk, struct tcp_sock, tcp_mstamp) * 1000;

	return last_ns > since_ns ? last_ns - since_ns : 0;
}

/* Why a connect() failed whose SYN was sent. The error is gone when the app has read it: then time and answers tell. */
static __always_inline enum flow_end failure_of(const struct sock *sk, __u64 since_ns)
{
	switch (FIELD(sk, struct sock, sk_err)) {
	case ECONNREFUSED:
		return FLOW_CONNECT_REFUSED;
	case ETIMEDOUT:
		return FLOW_CONNECT_TIMED_OUT;
	case ECONNRESET:
	case ECONNABORTED:
		return FLOW_ABORTED;
	case 0:
		break;
	default:
		return FLOW_UNREACHABLE;
	}
	if (FIELD(sk, struct tcp_sock, segs_in) || busy_ns(sk, since_ns) < SYN_TIMEOUT_NS)
		return FLOW_CONNECT_REFUSED;
	return FLOW_CONNECT_TIMED_OUT;
}

/* `end_of` adds it where the connection had been established. */
#define WAS_ESTABLISHED 0x100

static __always_inline bool has_socket_flag(const struct sock *sk, int bit)
{
	return FIELD(sk, struct sock, __sk_common.skc_flags) >> bit & 1;
}

/*
 * How the connection ended: an enum flow_end. `sequence` is that of outcome.h; for an accepted socket it and `since_ns` are 0.
 */
__noinline int end_of(FLOW_CONTEXT *ctx, __u32 tcp_state, __u32 sequence, __u64 since_ns)
{
	const struct sock *sk = socket_of(ctx);
	__u32 written;

	if (tcp_state == BPF_TCP_SYN_SENT)
		return FIELD(sk, struct tcp_sock, total_retrans) ? FLOW_CONNECT_TIMED_OUT : FLOW_ABORTED;
	if (tcp_state != BPF_TCP_CLOSE) {
		if (has_socket_flag(sk, SOCK_LINGER) && !FIELD(sk, struct sock, sk_lingertime))
			return WAS_ESTABLISHED | FLOW_ABORTED;
		return WAS_ESTABLISHED | FLOW_CLOSED;
	}
	if (FIELD(sk, struct tcp_sock, max_window)) {
		if (since_ns && !FIELD(sk, struct tcp_sock, bytes_acked))
			return WAS_ESTABLISHED | FLOW_REUSED;
		return WAS_ESTABLISHED | (has_socket_flag(sk, SOCK_DONE) ? FLOW_CLOSED : FLOW_RESET);
	}
	written = FIELD(sk, struct tcp_sock, write_seq);
	if (!written || written == sequence)
		return FLOW_UNREACHABLE;
	return failure_of(sk, since_ns);
}

/*
 * Payload: no SYN or FIN is in `sent` and `received`. What was written and not sent yet is still delivered after a close,
 * unless that close sends a reset.
 */
static __always_inline void find_bytes(__u32 tcp_state, const struct facts *facts, struct flow_sum *sum)
{
	__u32 done = has_flag(facts, SOCK_DONE);
	__u32 unsent = 0;

	if (facts->max_window && tcp_state != BPF_TCP_CLOSE && sum->end != FLOW_ABORTED &&
	    (__s32)(facts->rcv_nxt - facts->copied_seq) <= (__s32)done) {
		unsent = facts->write_seq - facts->snd_nxt;
		if (unsent &&
		    (tcp_state == BPF_TCP_FIN_WAIT1 || tcp_state == BPF_TCP_LAST_ACK || tcp_state == BPF_TCP_CLOSING))
			unsent--;
	}
	sum->sent = facts->bytes_sent - facts->bytes_retrans + unsent;
	sum->received = facts->bytes_received - (facts->bytes_received ? done : 0);
	sum->retransmits = facts->total_retrans;
	sum->rtt_us = facts->rtt_us == NO_RTT ? 0 : facts->rtt_us;
}
