/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

#include <linux/bpf.h>
#include <linux/errno.h>

#include "kernel.h"

/* How a connect() went, read from the kernel's own socket when it ends or connects again. */
enum outcome {
	OUTCOME_UNKNOWN = 0, /* nothing was sent, or the app changed its mind: says nothing of the endpoint */
	OUTCOME_CONNECTED = 1,
	OUTCOME_FAILED = 2, /* refused, timed out, unreachable */
};

/* `sequence` is write_seq from before connect(): every SYN moves it, and what failed before the SYN leaves it (or 0). */
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
		/* The app gave up. After one retransmission the endpoint had its second. */
		return BPF_CORE_READ(tcp, total_retrans) ? OUTCOME_FAILED : OUTCOME_UNKNOWN;
	case BPF_TCP_CLOSE:
		break;
	default:
		return OUTCOME_UNKNOWN;
	}
	written = BPF_CORE_READ(tcp, write_seq);
	if (written == sequence || !written)
		return OUTCOME_UNKNOWN;
	/* AF_UNSPEC clears the count of bytes and leaves the window; a window of zero leaves only the SYN's byte. */
	if (BPF_CORE_READ(tcp, max_window) || BPF_CORE_READ(tcp, bytes_acked))
		return OUTCOME_CONNECTED;
	/* Ended from here, by AF_UNSPEC, shutdown or an administrator, before there was an answer. */
	error = BPF_CORE_READ(sk, sk_err);
	return error == ECONNRESET || error == ECONNABORTED ? OUTCOME_UNKNOWN : OUTCOME_FAILED;
}
