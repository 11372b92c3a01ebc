/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

#include <linux/bpf.h>
#include <linux/errno.h>

#include "kernel.h"

/* How a connect() went. The kernel's socket says it when the connection ends or the socket connects again. */
enum outcome {
	OUTCOME_UNKNOWN = 0, /* no SYN was sent, or the app gave up: the endpoint's health is unknown */
	OUTCOME_CONNECTED = 1,
	OUTCOME_FAILED = 2, /* refused, timed out, unreachable */
};

/*
 * `state` is the socket's TCP state. `sequence` is the socket's write_seq before connect(): a SYN changes write_seq, and a
 * failure before the SYN leaves it, or sets it to 0.
 */
static __always_inline enum outcome outcome_of(const struct sock *sk, __u32 state, __u32 sequence)
{
	const struct tcp_sock *tcp = (const struct tcp_sock *)sk;
	__u32 written;
	int error;

	switch (state) {
	case BPF_TCP_ESTABLISHED:
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_CLOSING:
	case BPF_TCP_LAST_ACK:
		return OUTCOME_CONNECTED;
	case BPF_TCP_SYN_SENT:
		/* The app gave up. The first retransmission comes after a second: the endpoint had time to answer. */
		return BPF_CORE_READ(tcp, total_retrans) ? OUTCOME_FAILED : OUTCOME_UNKNOWN;
	case BPF_TCP_CLOSE:
		break;
	default:
		return OUTCOME_UNKNOWN;
	}
	written = BPF_CORE_READ(tcp, write_seq);
	if (written == sequence || !written)
		return OUTCOME_UNKNOWN;
	/* AF_UNSPEC clears bytes_acked and keeps max_window. A peer whose window is 0 leaves only the SYN in bytes_acked. */
	if (BPF_CORE_READ(tcp, max_window) || BPF_CORE_READ(tcp, bytes_acked))
		return OUTCOME_CONNECTED;
	/* The app or an administrator ended the socket before the endpoint answered. */
	error = BPF_CORE_READ(sk, sk_err);
	return error == ECONNRESET || error == ECONNABORTED ? OUTCOME_UNKNOWN : OUTCOME_FAILED;
}
