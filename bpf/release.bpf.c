// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The end of a socket: uncounts its live connection and records its outcome. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "include/accepted.h"
#include "include/live.h"
#include "include/socket.h"

/* The context of this hook is the kernel's socket itself. */
SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	const struct sock *sk = (const struct sock *)ctx;
	struct socket_state *state;
	struct traffic *set;

	/* This runs for each socket of the machine. */
	if (may_have_storage(ctx)) {
		state = bpf_sk_storage_get(&sockets, ctx, NULL, 0);
		if (state) {
			if (state->flow)
				end_flow_of(ctx, state, ctx->state);
			end_socket(state, sk, ctx->state);
			return 1;
		}
	}
	set = traffic_settings();
	if (set && set->flags & (TRAFFIC_SERVED | TRAFFIC_ACCEPTED) && ctx->protocol == IPPROTO_TCP)
		count_accepted(ctx, ctx->state);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
