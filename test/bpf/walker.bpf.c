// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The least iterator over a map: whether a kernel loads it says whether it lists sockets and rows for kmesh. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("iter/bpf_map_elem")
int walk(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
