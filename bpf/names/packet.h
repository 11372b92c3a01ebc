/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Turns a query's packet round: its headers, checksums and addresses. */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "query.h"

#define RESPONSE_HOPS 64 /* TTL or hop limit of the IP header */

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The UDP checksum over IPv6 (RFC 8200, 8.1), where it may not be left out. `q->packet` is zero behind the message. */
static __always_inline __u16 checksum_v6(struct query *q, struct ipv6hdr *ip, struct udphdr *udp, __u32 length)
{
	__be32 tail[2] = { bpf_htonl(length + sizeof(*udp)), bpf_htonl(IPPROTO_UDP) };
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip->saddr, 2 * sizeof(ip->saddr), 0);

	sum = bpf_csum_diff(NULL, 0, tail, sizeof(tail), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)udp, sizeof(*udp), sum);
	for (__u32 i = 0; i < 3; i++) {
		__u32 size;

		if (length <= i * 512)
			break;
		size = (length - i * 512 + 3) & ~3u;
		if (size > 512)
			size = 512;
		size = bound(size, 0x3ff);
		sum = bpf_csum_diff(NULL, 0, (__be32 *)(q->packet + i * 512), size, sum);
	}
	return fold(sum) ?: 0xffff;
}

/* Turns the IPv4 header at `at` round: the response goes back to the sender. Gives 0, or -1. */
static __always_inline int turn_v4(struct __sk_buff *skb, __u32 at, __u32 udp_length)
{
	struct iphdr ip;
	__be32 sender;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return -1;
	sender = ip.saddr;
	ip.saddr = ip.daddr;
	ip.daddr = sender;
	ip.tot_len = bpf_htons(sizeof(ip) + udp_length);
	ip.ttl = RESPONSE_HOPS;
	ip.check = 0;
	ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	return bpf_skb_store_bytes(skb, at, &ip, sizeof(ip), 0);
}

/* The same for IPv6. `ip` becomes the new header: the UDP checksum covers its addresses. */
static __always_inline int turn_v6(struct __sk_buff *skb, __u32 at, __u32 udp_length, struct ipv6hdr *ip)
{
	struct in6_addr sender;

	if (bpf_skb_load_bytes(skb, at, ip, sizeof(*ip)))
		return -1;
	sender = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = sender;
	ip->payload_len = bpf_htons(udp_length);
	ip->hop_limit = RESPONSE_HOPS;
	return bpf_skb_store_bytes(skb, at, ip, sizeof(*ip), 0);
}

/* Makes the packet the response in `q->packet`. Gives 0, or -1 when it is half done. */
VERIFIED_ONCE int names_rewrite(struct __sk_buff *skb, __u32 at, __u32 v6)
{
	__u32 udp_at = at + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	struct query *q = this_query();
	struct ipv6hdr ip;
	struct udphdr udp;
	__u64 length;

	if (!q)
		return -1;
	/* As a sum, so that older kernels know that it is not zero. */
	length = bound(LOAD(q->at) - 1, OFFSET_MASK) + 1;
	if (length < SHORTEST_QUERY)
		return -1;
	*(__u32 *)(q->packet + length) = 0;
	if (bpf_skb_load_bytes(skb, udp_at, &udp, sizeof(udp)))
		return -1;
	udp.dest = udp.source;
	udp.source = bpf_htons(DNS_PORT);
	udp.len = bpf_htons(sizeof(udp) + length);
	/* IPv4 needs none (RFC 768): the packet does not leave the machine. */
	udp.check = 0;
	if (v6) {
		if (turn_v6(skb, at, sizeof(udp) + length, &ip))
			return -1;
		udp.check = checksum_v6(q, &ip, &udp, length);
	} else if (turn_v4(skb, at, sizeof(udp) + length)) {
		return -1;
	}
	if (bpf_skb_store_bytes(skb, udp_at, &udp, sizeof(udp), 0))
		return -1;
	return bpf_skb_store_bytes(skb, udp_at + sizeof(udp), q->packet, length, 0) ? -1 : 0;
}

static __always_inline int swap_link_addresses(struct __sk_buff *skb)
{
	__u8 to[ETH_ALEN], from[ETH_ALEN];

	if (bpf_skb_load_bytes(skb, 0, to, ETH_ALEN) || bpf_skb_load_bytes(skb, ETH_ALEN, from, ETH_ALEN))
		return -1;
	return bpf_skb_store_bytes(skb, 0, from, ETH_ALEN, 0) || bpf_skb_store_bytes(skb, ETH_ALEN, to, ETH_ALEN, 0);
}
