// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The life of a redirected connection: counted when its SYN is about to leave, taken back when it reaches CLOSE,
 * once each however it ends. Both callbacks run under the socket's lock.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "include/keep.h"

static __always_inline void add_live(const struct socket_state *state, __s64 change)
{
	struct endpoint_load *endpoint = chunked_lookup(&endpoint_loads, state->endpoint);
	struct cluster_load *cluster = chunked_lookup(&cluster_loads, state->cluster);

	if (endpoint)
		__sync_fetch_and_add(&endpoint->live, change);
	if (cluster)
		__sync_fetch_and_add(&cluster->live, change);
}

static __always_inline void opened(struct bpf_sock_ops *ctx, struct socket_state *state)
{
	if (!(state->flags & SOCKET_REDIRECTED) || state->flags & SOCKET_COUNTED)
		return;
	/* Without the callback the connection could never be taken back. */
	if (bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG))
		return;
	add_live(state, 1);
	state->flags |= SOCKET_COUNTED;
}

static __always_inline void closed(struct socket_state *state)
{
	if (!(state->flags & SOCKET_COUNTED))
		return;
	state->flags &= ~SOCKET_COUNTED;
	add_live(state, -1);
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	struct socket_state *state;
	struct bpf_sock *sk;
	__u32 op = ctx->op;

	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	if (op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] != BPF_TCP_CLOSE)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	state = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!state)
		return 1;
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		opened(ctx, state);
	else
		closed(state);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
