// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Answers DNS queries for mesh names at the egress of an interface. The query's packet is rewritten into the response and
 * returned to the socket that sent it. No process takes part. Everything else than a plain query for a name of the table
 * passes untouched.
 *
 * There is one program for each kind of interface, because their packets differ before the IP header and in the way back.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps/names.h"
#include "include/asker.h"
#include "names/query.h"
#include "names/find.h"
#include "names/response.h"
#include "names/packet.h"

/* The kind of an interface. `explain` runs without an interface, for `kmesh resolve`. */
struct interface {
	__u32 link_header; /* bytes */
	bool loopback;
	bool explain;
};

static __always_inline void count_event(__u32 event)
{
	__u64 *counter = bpf_map_lookup_elem(&names_counts, &event);

	if (counter)
		*counter += 1;
}

/* Lets the packet go on to the programs behind this one, and out. */
static __always_inline int pass(struct __sk_buff *skb, const struct interface *in, __u32 reason)
{
	if (in->explain)
		skb->cb[0] = reason;
	else
		count_event(reason);
	return TC_ACT_UNSPEC;
}

/* A UDP packet to port 53, whose IP header stands at `at` and whose DNS message has `length` bytes. */
static __always_inline int answer(struct __sk_buff *skb, const struct interface *in, __u32 at, bool v6, __u32 length)
{
	__u32 message = at + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct udphdr);
	const __u32 zero = 0;
	struct query *q = bpf_map_lookup_elem(&names_query, &zero);
	struct names_settings *set = bpf_map_lookup_elem(&names_settings, &zero);
	struct name_entry *entry;
	__u32 event;
	int id;

	if (!q || !set)
		return TC_ACT_UNSPEC;
	if (!(set->flags & NAMES_ON))
		return pass(skb, in, NAMES_PASSED_OFF);
	if (skb->ingress_ifindex && !in->explain && !(set->flags & NAMES_FORWARDED))
		return pass(skb, in, NAMES_PASSED_FORWARDED);
	if (length < SHORTEST_QUERY || message + length > skb->len)
		return pass(skb, in, NAMES_PASSED_MALFORMED);
	if (length > LONGEST_QUERY)
		return pass(skb, in, NAMES_PASSED_FORM);
	if (bpf_skb_load_bytes(skb, message, q->packet, length))
		return pass(skb, in, NAMES_PASSED_MALFORMED);
	STORE(q->length, length);
	/* One question, no records but one in the additional section. */
	if ((q->packet[2] & (QR | OPCODE | TC)) || (q->packet[3] & 0x0f) || word_at(q->packet + 4) != 1 ||
	    word_at(q->packet + 6) || word_at(q->packet + 8) || word_at(q->packet + 10) > 1)
		return pass(skb, in, NAMES_PASSED_FORM);
	if (!names_read_name(set->multiplier, set->inverse))
		return pass(skb, in, NAMES_PASSED_MALFORMED);
	event = read_tail(q);
	if (event != NAMES_COUNT_END)
		return pass(skb, in, event);
	id = find_name(q, set);
	entry = id < 0 ? NULL : chunked_lookup(&name_entries, id);
	if (!entry)
		return pass(skb, in, NAMES_PASSED_UNKNOWN);
	if (in->explain)
		skb->cb[1] = id + 1;
	if (entry->kind == ENTRY_PASS)
		return pass(skb, in, NAMES_PASSED_EXCLUDED);
	if (entry->kind != ENTRY_ADDRESSES && entry->kind != ENTRY_POINTER)
		return pass(skb, in, NAMES_PASSED_UNKNOWN);
	if (!in->explain && is_agents_query(skb))
		return pass(skb, in, NAMES_PASSED_AGENT);
	if (!in->explain && !(set->flags & NAMES_EVERY_CGROUP) && !is_enrolled_asker(skb))
		return pass(skb, in, NAMES_PASSED_NOT_ENROLLED);
	event = build_response(q, entry, set);
	if (set->flags & NAMES_SHADOW && !in->explain)
		return pass(skb, in, NAMES_WOULD_ANSWER);
	if (bpf_skb_change_tail(skb, message + LOAD(q->at), 0))
		return pass(skb, in, NAMES_FAILED);
	if (names_rewrite(skb, at, v6) || (in->link_header && !in->loopback && swap_link_addresses(skb))) {
		pass(skb, in, NAMES_FAILED);
		return TC_ACT_SHOT;
	}
	pass(skb, in, event);
	if (in->explain)
		return TC_ACT_OK;
	/* On loopback every packet comes back by itself, and one that is redirected is dropped as a martian. */
	return in->loopback ? TC_ACT_UNSPEC : (int)bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/*
 * The length of the DNS message of a UDP packet to port 53, whose IP payload has `payload` bytes; -1 for any other packet.
 * VLAN tags and segments to be made by the interface pass: whoever sends queries so is not a stub resolver.
 */
static __always_inline int query_length(const struct __sk_buff *skb, const struct udphdr *udp, const void *end,
					__u32 payload)
{
	__u32 length;

	if ((const void *)(udp + 1) > end || udp->dest != bpf_htons(DNS_PORT))
		return -1;
	length = bpf_ntohs(udp->len);
	if (skb->vlan_present || skb->gso_segs > 1 || length < sizeof(*udp) || payload != length)
		return -1;
	return length - sizeof(*udp);
}

/* IP options, extension headers and fragments pass, too. */
static __always_inline int handle(struct __sk_buff *skb, const struct interface in)
{
	void *ip_at = (void *)(long)skb->data + in.link_header, *end = (void *)(long)skb->data_end;
	bool v6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	int length = -1;

	if (v6) {
		struct ipv6hdr *ip = ip_at;

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_UDP)
			return TC_ACT_UNSPEC;
		if ((*(__u8 *)ip & 0xf0) == 0x60)
			length = query_length(skb, (void *)(ip + 1), end, bpf_ntohs(ip->payload_len));
	} else if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = ip_at;

		if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_UDP)
			return TC_ACT_UNSPEC;
		if (*(__u8 *)ip == 0x45 && !(ip->frag_off & bpf_htons(0x3fff)))
			length = query_length(skb, (void *)(ip + 1), end, bpf_ntohs(ip->tot_len) - sizeof(*ip));
	}
	return length < 0 ? TC_ACT_UNSPEC : answer(skb, &in, in.link_header, v6, length);
}

SEC("tc")
int names_ethernet(struct __sk_buff *skb)
{
	return handle(skb, (struct interface){ .link_header = ETH_HLEN });
}

SEC("tc")
int names_loopback(struct __sk_buff *skb)
{
	return handle(skb, (struct interface){ .link_header = ETH_HLEN, .loopback = true });
}

/* Tunnels: the IP header comes first. */
SEC("tc")
int names_bare(struct __sk_buff *skb)
{
	return handle(skb, (struct interface){ .link_header = 0 });
}

/*
 * Never attached: `kmesh resolve` runs it over a packet of its own. The event goes to cb[0], the entry's id, and 1, to cb[1];
 * nothing is counted.
 */
SEC("tc")
int names_explain(struct __sk_buff *skb)
{
	return handle(skb, (struct interface){ .link_header = ETH_HLEN, .loopback = true, .explain = true });
}

char _license[] SEC("license") = "Dual BSD/GPL";
