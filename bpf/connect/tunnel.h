/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Connections to the tunnel on this machine: those that an app may not make, and those that can't be made. */
#include "../include/walk.h"
#include "../maps/tunnel.h"
#include "request.h"

/*
 * Whether an app means the tunnel itself. It would carry the bytes under this machine's identity, to any peer and past every
 * rule. Connections that are led there asked for another address. connect() to 0.0.0.0 goes to 127.0.0.1, or to the
 * address of 127/8 that the socket is bound to. In other network namespaces that address is not our tunnel's: another agent may
 * have one there.
 */
static __always_inline bool enters_tunnel(struct bpf_sock_addr *ctx, const struct settings *set,
					  const struct request *req)
{
	__u32 net = bpf_ntohl(req->address.word[3]) >> 24;

	if (req->port != bpf_htons(TUNNEL_PORT) || !(set->flags & SETTING_TUNNEL))
		return false;
	return is_mapped(&req->address) && (net == 127 || !net) && in_own_netns(ctx, set);
}

/* Whether the endpoint is reached through the tunnel, and the socket lies in a network namespace that can't reach ours. */
static __always_inline bool is_out_of_reach(struct bpf_sock_addr *ctx, const struct settings *set,
					    const struct endpoint *endpoint)
{
	const __u64 needed = SETTING_EVERY_NETNS | SETTING_TUNNEL;

	if ((set->flags & needed) != needed || !endpoint || endpoint->port != bpf_htons(TUNNEL_PORT))
		return false;
	return is_mapped(&endpoint->address) && bpf_ntohl(endpoint->address.word[3]) >> 24 == 127 &&
	       !in_own_netns(ctx, set);
}
