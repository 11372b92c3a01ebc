// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The end of a socket: its connection lives no more, and how it went is known. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "include/accepted.h"
#include "include/live.h"

/* An MPTCP socket that is closed says less than its first subflow, which tells a failed connect() from an ended one. */
static __always_inline void end_mptcp(struct socket_state *state, const struct mptcp_sock *mptcp, __u32 tcp_state)
{
	const struct sock *first = BPF_CORE_READ(mptcp, first);

	if (tcp_state == BPF_TCP_CLOSE && first)
		tcp_state = BPF_CORE_READ(first, __sk_common.skc_state);
	end_connection(state, first, tcp_state);
}

/* The context of this hook is the kernel's socket itself. */
SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	struct socket_state *state = bpf_sk_storage_get(&sockets, ctx, NULL, 0);
	struct traffic *set;

	if (state) {
		if (state->flow)
			end_flow(ctx, ctx->state);
		if (can_find_mptcp_socket() && state->flags & SOCKET_MPTCP)
			end_mptcp(state, (const struct mptcp_sock *)ctx, ctx->state);
		else
			end_connection(state, (const struct sock *)ctx, ctx->state);
		return 1;
	}
	set = traffic_settings();
	if (set && set->flags & TRAFFIC_SERVED && ctx->protocol == IPPROTO_TCP)
		count_accepted(ctx, ctx->state);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
