// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Decides who may connect to this machine's services. The kernel runs it once for each SYN, before it looks a socket up. A
 * refused peer gets a RST at once, and the application sees nothing. Nothing runs per packet, and no process takes part.
 *
 * At ports with mutual TLS the connection goes to the tunnel's listening socket instead of the application's.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps/inbound.h"

#define AF_INET 2
#define AF_INET6 10
struct pair {
	struct inbound_prefix source;
	struct inbound_prefix destination;
};

static __always_inline void map_v4(struct inbound_prefix *prefix, __be32 address)
{
	prefix->bits = 128;
	prefix->word[0] = 0;
	prefix->word[1] = 0;
	prefix->word[2] = bpf_htonl(0xffff);
	prefix->word[3] = address;
}

static __always_inline bool addresses_of(struct bpf_sk_lookup *ctx, struct pair *pair)
{
	if (ctx->family == AF_INET) {
		map_v4(&pair->source, ctx->remote_ip4);
		map_v4(&pair->destination, ctx->local_ip4);
		return true;
	}
	if (ctx->family != AF_INET6)
		return false;
	pair->source.bits = 128;
	pair->source.word[0] = ctx->remote_ip6[0];
	pair->source.word[1] = ctx->remote_ip6[1];
	pair->source.word[2] = ctx->remote_ip6[2];
	pair->source.word[3] = ctx->remote_ip6[3];
	pair->destination.bits = 128;
	pair->destination.word[0] = ctx->local_ip6[0];
	pair->destination.word[1] = ctx->local_ip6[1];
	pair->destination.word[2] = ctx->local_ip6[2];
	pair->destination.word[3] = ctx->local_ip6[3];
	return true;
}

/*
 * Whether the peer is this machine. A remote host can't complete a handshake from such an address: what answers it goes to
 * the machine itself. (The interface does not tell: for what loops back, the kernel says the one that has the address.)
 */
static __always_inline bool is_local(struct bpf_sk_lookup *ctx, const struct pair *pair)
{
	const __be32 *from = pair->source.word, *to = pair->destination.word;

	if (from[0] == to[0] && from[1] == to[1] && from[2] == to[2] && from[3] == to[3])
		return true;
	if (!from[0] && !from[1] && !from[2] && from[3] == bpf_htonl(1))
		return true;
	if (ctx->family == AF_INET && (from[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000))
		return true;
	return bpf_map_lookup_elem(&inbound_local, from);
}

/* The last refusals, for `kmesh status`. */
static __always_inline void record(struct bpf_sk_lookup *ctx, const struct pair *pair, __u32 refusal)
{
	const __u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&inbound_number, &zero);
	struct inbound_recent *recent;
	__u64 number;
	__u32 at;

	if (!count)
		return;
#ifdef KMESH_NO_FETCH_ATOMICS
	/* Two CPUs within these few nanoseconds may get the same record: one refusal is missing in the list then. */
	__sync_fetch_and_add(count, 1);
	number = *(volatile __u64 *)count;
#else
	number = __sync_fetch_and_add(count, 1) + 1;
#endif
	at = number % INBOUND_RECENT;
	recent = bpf_map_lookup_elem(&inbound_recent, &at);
	if (!recent)
		return;
	*(volatile __u64 *)&recent->number = 0;
	barrier();
	recent->at_ns = bpf_ktime_get_ns();
	__builtin_memcpy(recent->source, pair->source.word, sizeof(recent->source));
	__builtin_memcpy(recent->destination, pair->destination.word, sizeof(recent->destination));
	recent->source_port = ctx->remote_port;
	recent->port = ctx->local_port;
	recent->refusal = refusal;
	barrier();
	*(volatile __u64 *)&recent->number = number;
}

static __always_inline int refuse(struct bpf_sk_lookup *ctx, const struct pair *pair, __u32 refusal)
{
	__u64 *count = bpf_map_lookup_elem(&inbound_refusals, &refusal);

	if (count)
		__sync_fetch_and_add(count, 1);
	record(ctx, pair, refusal);
	return SK_DROP;
}

/* The class of an address. Every address has one where classes matter: NULL is a contradiction. */
static __always_inline __u32 *class_of(void *slots, __u32 slot, const struct inbound_prefix *address)
{
	void *trie = bpf_map_lookup_elem(slots, &slot);

	return trie ? bpf_map_lookup_elem(trie, address) : NULL;
}

/* NULL when the tables contradict each other. */
static __always_inline struct inbound_cell *cell_of(const struct inbound_port *port, __u32 slot,
						    const struct pair *pair)
{
	void *cells = bpf_map_lookup_elem(&inbound_cells, &slot);
	__u32 at = port->first_cell;
	__u32 *class;

	if (!cells)
		return NULL;
	if (port->flags & PORT_BY_SOURCE) {
		class = class_of(&inbound_sources, slot, &pair->source);
		if (!class)
			return NULL;
		at += *class * port->destinations;
	}
	if (port->flags & PORT_BY_DESTINATION) {
		class = class_of(&inbound_dests, slot, &pair->destination);
		if (!class)
			return NULL;
		at += *class;
	}
	return bpf_map_lookup_elem(cells, &at);
}

/* Hands the connection to the tunnel. False when it does not listen. */
static __always_inline bool steer(struct bpf_sk_lookup *ctx)
{
	const __u32 which = ctx->family == AF_INET ? LISTENER_V4 : LISTENER_V6;
	struct bpf_sock *listener = bpf_map_lookup_elem(&inbound_listeners, &which);
	long error;

	if (!listener)
		return false;
	error = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	return !error;
}

SEC("sk_lookup")
int inbound(struct bpf_sk_lookup *ctx)
{
	const __u32 zero = 0;
	__u64 *settings = bpf_map_lookup_elem(&inbound_settings, &zero);
	struct inbound_port *port;
	struct inbound_cell *cell;
	__u32 slot, number;
	struct pair pair;
	__u64 word;
	void *ports;

	if (ctx->protocol != IPPROTO_TCP || !settings)
		return SK_PASS;
	/* One load: the whole set is the old one or the new one. */
	word = *(volatile __u64 *)settings;
	if (!(word & INBOUND_ON))
		return SK_PASS;
	slot = word & INBOUND_SLOT ? 1 : 0;
	ports = bpf_map_lookup_elem(&inbound_ports, &slot);
	number = ctx->local_port;
	port = ports ? bpf_map_lookup_elem(ports, &number) : NULL;
	if (!port || !addresses_of(ctx, &pair))
		return SK_PASS;
	cell = cell_of(port, slot, &pair);
	if (cell && !cell->anybody && !cell->plaintext && port->mode == MODE_DISABLE)
		return SK_PASS;
	if (is_local(ctx, &pair))
		return SK_PASS;
	if (!cell)
		return refuse(ctx, &pair, REFUSED_INTERNAL);
	if (cell->anybody)
		return refuse(ctx, &pair, cell->anybody);
	if (port->mode != MODE_DISABLE && steer(ctx))
		return SK_PASS;
	if (port->mode == MODE_STRICT)
		return refuse(ctx, &pair, REFUSED_STRICT);
	if (cell->plaintext)
		return refuse(ctx, &pair, cell->plaintext);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
