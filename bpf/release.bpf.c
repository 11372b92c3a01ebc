// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The end of a socket: its connection lives no more, and how it went is known. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "include/live.h"

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	struct socket_state *state = bpf_sk_storage_get(&sockets, ctx, NULL, 0);

	if (state)
		end_connection(state, (const struct sock *)ctx, ctx->state);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
