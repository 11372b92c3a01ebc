/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* What is read of an accepted socket to find its row: the port that it serves, and who called. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"
#include "../maps/traffic.h"

#ifndef AF_INET6
#define AF_INET6 10
#endif

static __always_inline bool is_served(__be16 port)
{
	__u32 host = bpf_ntohs(port);
	__u32 at = host / 64;
	__u64 *word = bpf_map_lookup_elem(&served_ports, &at);

	return word && *(volatile __u64 *)word >> (host & 63) & 1;
}

static __always_inline __be16 local_port(const struct sock *sk)
{
	return FIELD(sk, struct inet_sock, inet_sport);
}

static __always_inline struct address remote_address(const struct sock *sk)
{
	struct address remote = {};

	if (FIELD(sk, struct sock, __sk_common.skc_family) == AF_INET6) {
		bpf_probe_read_kernel(&remote, sizeof(remote), &sk->__sk_common.skc_v6_daddr);
		return remote;
	}
	remote.word[2] = bpf_htonl(0xffff);
	remote.word[3] = FIELD(sk, struct sock, __sk_common.skc_daddr);
	return remote;
}
