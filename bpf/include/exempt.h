/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Destinations that are never governed, whoever connects: they belong to this host or link, or to no single host.
 * src/mesh/exempt.ts has the same list for the compiler and for `kmesh explain`; its test reads this file. 240.0.0.0/4 is
 * not exempt: istiod gives services without an address one of 240.240.0.0/16.
 */
#include <linux/types.h>
#include <bpf/bpf_endian.h>

#include "../maps/address.h"

/* block(address in host byte order, length) */
/* clang-format off */
#define EXEMPT_V4(block)        \
	block(0x00000000u, 8)   \
	block(0x7f000000u, 8)   \
	block(0xa9fe0000u, 16)  \
	block(0xe0000000u, 4)   \
	block(0xffffffffu, 32)
/* clang-format on */

/* block(the first 32 bits in host byte order, length up to 32) */
/* clang-format off */
#define EXEMPT_V6(block)        \
	block(0xfe800000u, 10)  \
	block(0xff000000u, 8)
/* clang-format on */

/* ::/EXEMPT_V6_ZERO: the unspecified address and loopback. */
/* clang-format off */
#define EXEMPT_V6_ZERO 127
/* clang-format on */

#define LIES_IN(network, length) || (head & (~0u << (32 - (length)))) == (network)

static __always_inline bool is_mapped(const struct address *address)
{
	return !address->word[0] && !address->word[1] && address->word[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_exempt_v4(__be32 address)
{
	__u32 head = bpf_ntohl(address);

	return false EXEMPT_V4(LIES_IN);
}

static __always_inline bool is_exempt_v6(const struct address *address)
{
	__u32 head = bpf_ntohl(address->word[0]);

	if (!head && !address->word[1] && !address->word[2])
		return bpf_ntohl(address->word[3]) >> (128 - EXEMPT_V6_ZERO) == 0;
	return false EXEMPT_V6(LIES_IN);
}

static __always_inline bool is_exempt_address(const struct address *address)
{
	return is_mapped(address) ? is_exempt_v4(address->word[3]) : is_exempt_v6(address);
}

/* Of settings.broadcast_filter; src/datapath/tables/broadcast.ts computes the same. */
static __always_inline __u32 broadcast_bit(__be32 address)
{
	return bpf_ntohl(address) * 0x9e3779b1u >> 26;
}

/* Whether to ask the table: nearly never for what is no broadcast address. */
static __always_inline bool may_be_broadcast(const struct address *address, __u64 filter)
{
	return filter && is_mapped(address) && filter >> broadcast_bit(address->word[3]) & 1;
}
