// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Removes connections from the live counts that have ended while an app still holds their sockets: refused, reset, shut down
 * by both ends, or dissolved by AF_UNSPEC. A hook for them would cost every connection of the machine too much. So the agent
 * runs this iterator over the sockets with state each second. sock_release then finds the connection uncounted already.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define RUNS_AS_AGENT
#include "include/live.h"

/* connect() needs microseconds from our hook to its SYN. A socket that is closed for longer did not get that far. */
#define UNDER_WAY_NS 1000000000ull

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_iter__bpf_sk_storage_map {
	struct sock *sk;
	void *value;
};

#pragma clang attribute pop

/* Between our hook and the SYN a socket is closed, too, with the sequence number that the hook saw. */
static __always_inline bool is_under_way(const struct socket_state *state, const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, write_seq) == state->sequence &&
	       bpf_ktime_get_ns() - state->since_ns < UNDER_WAY_NS;
}

SEC("iter/bpf_sk_storage_map")
int end_closed(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct socket_state *state = ctx->value;
	const struct sock *sk = ctx->sk;

	if (!state || !sk || !(state->flags & SOCKET_COUNTED))
		return 0;
	if (BPF_CORE_READ(sk, __sk_common.skc_state) != BPF_TCP_CLOSE)
		return 0;
	if (!is_under_way(state, connecting_socket(state, sk)))
		end_socket(state, sk, BPF_TCP_CLOSE);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
