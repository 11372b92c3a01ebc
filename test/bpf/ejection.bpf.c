// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The rules of eject.h alone, for a comparison with those of the tunnel. The first argument is the cluster, the second the
 * endpoint and how a connect to it went.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "../../bpf/include/kernel.h"
#include "../../bpf/include/eject.h"

#define WELL 0x80000000u
#define BEGUN_LONG_AGO 0x40000000u
#define ENDPOINT 0x3fffffffu

SEC("raw_tp")
int record(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 cluster = ctx->args[0], went = ctx->args[1];
	struct socket_state state = { .cluster = cluster, .endpoint = went & ENDPOINT };
	struct endpoint_load *load = chunked_lookup(&endpoint_loads, state.endpoint);

	state.since_ns = went & BEGUN_LONG_AGO ? 1 : bpf_ktime_get_ns();
	if (load)
		outlier_update(&state, load, went & WELL ? OUTCOME_CONNECTED : OUTCOME_FAILED);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
