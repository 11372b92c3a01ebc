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

#define DNS_PORT 53
#define DNS_HEADER 12
#define QUESTION_TAIL 4 /* type and class */
#define OPT_RECORD 11
/* The shortest query asks for the root. */
#define SHORTEST_QUERY (DNS_HEADER + 1 + QUESTION_TAIL)
#define LONGEST_QUERY 512
/* A response without EDNS(0), and the longest that is sent with it: it fits into any MTU of IPv6 (dnsflagday.net/2020). */
#define PLAIN_RESPONSE 512
#define LONGEST_RESPONSE 1232
#define LONGEST_RECORD (12 + 16) /* AAAA */
#define MOST_ANSWERS 76 /* A records in the longest response */
#define TTL_SECONDS 30
#define RESPONSE_HOPS 64 /* TTL or hop limit of the IP header */
#define NAME_POINTER 0xc00c /* to the question's name (RFC 1035, 4.1.4) */
#define LOOKUP_RETRIES 4
/* Bits of an offset into the response, and room for what is written from there on. */
#define OFFSET_MASK 0x7ffu
#define PACKET_ROOM (OFFSET_MASK + 1 + 272)

enum {
	TYPE_A = 1,
	TYPE_PTR = 12,
	TYPE_AAAA = 28,
	TYPE_OPT = 41,
	TYPE_ANY = 255,
	CLASS_IN = 1
};

/* Bytes 2 and 3 of a DNS header. */
enum {
	QR = 0x80,
	OPCODE = 0x78,
	AA = 0x04,
	TC = 0x02,
	RD = 0x01,
	RA = 0x80,
	CD = 0x10
};

/* In the flags of an OPT record: the client understands DNSSEC (RFC 3225). */
#define DO_BIT 0x80

/* The kind of an interface. `explain` runs without an interface, for `kmesh resolve`. */
struct interface {
	__u32 link_header; /* bytes */
	bool loopback;
	bool explain;
};

/*
 * The state of a query. It is in a map because it exceeds the stack, and because the verifier then treats values that loops
 * carry as unknown, which keeps its states few.
 */
struct query {
	__u8 packet[PACKET_ROOM]; /* the query, then the response that grows out of it */
	__u8 name[NAME_MAX + 256 + 18]; /* in lower case, wire form without the root label */
	__u64 sum_at[LABEL_MAX + 1]; /* by label: the hash of what stands before it */
	__u64 inverse_at[LABEL_MAX + 1]; /* M^-offset */
	__u8 offset_of[LABEL_MAX + 1];
	__u64 sum;
	__u32 length; /* of the DNS message */
	__u32 name_length;
	__u32 labels;
	__u32 label_left;
	__u32 at; /* the response's end */
	__u32 limit; /* of the response, without what EDNS adds */
	__u32 count; /* records in the answer */
	__u16 type;
	__u16 client_room; /* EDNS(0): the client's buffer */
	__u8 edns;
	__u8 wants_dnssec;
	__u8 zero[2];
};

/* [0] -> the query of this CPU. Used by one run of a program at a time: bottom halves are off at egress. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct query);
} names_query SEC(".maps");

/* Reads and writes that the compiler may not keep in a register; see struct query. */
#define LOAD(field) (*(volatile typeof(field) *)&(field))
#define STORE(field, value) (*(volatile typeof(field) *)&(field) = (value))

/* Repeats a check for the verifier; it never changes a checked value. */
static __always_inline __u64 bound(__u64 value, const __u32 mask)
{
	asm volatile("%0 &= %1" : "+r"(value) : "i"(mask));
	return value;
}

static __always_inline __u16 word_at(const __u8 *byte)
{
	return (__u16)byte[0] << 8 | byte[1];
}

static __always_inline void put_word(__u8 *byte, __u16 value)
{
	byte[0] = value >> 8;
	byte[1] = value;
}

/*
 * Functions that are not static are verified once, whoever calls them, and not with every path that leads there. They
 * take numbers and the context alone; kernels before 5.17 or so know no more.
 */
#define VERIFIED_ONCE __noinline

static __always_inline struct query *this_query(void)
{
	const __u32 zero = 0;

	return bpf_map_lookup_elem(&names_query, &zero);
}

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

/* The question's name: lower case, hashes at the labels' borders. Compressed and overlong names are malformed. */
VERIFIED_ONCE int names_read_name(__u64 multiplier, __u64 inverse)
{
	struct query *q = this_query();
	__u64 sum = 0, power = 1, unpower = 1;

	if (!q)
		return false;
	STORE(q->labels, 0);
	STORE(q->label_left, 0);
	for (__u32 i = 0; i <= NAME_MAX; i++) {
		__u32 left = LOAD(q->label_left);
		__u8 byte = q->packet[DNS_HEADER + i];

		if (DNS_HEADER + i >= LOAD(q->length))
			return false;
		if (left) {
			if (byte >= 'A' && byte <= 'Z')
				byte |= 0x20;
			STORE(q->label_left, left - 1);
		} else {
			__u32 label = LOAD(q->labels);

			if (!byte) {
				STORE(q->name_length, i);
				STORE(q->sum, sum);
				return true;
			}
			if (byte > 63 || label >= LABEL_MAX)
				return false;
			q->offset_of[label] = i;
			q->sum_at[label] = sum;
			q->inverse_at[label] = unpower;
			STORE(q->labels, label + 1);
			STORE(q->label_left, byte);
		}
		q->name[i] = byte;
		sum += byte * power;
		power *= multiplier;
		unpower *= inverse;
	}
	return false;
}

/* Type and class of the question, and the OPT record behind it. Gives NAMES_COUNT_END, or why the query is not ours. */
static __always_inline __u32 read_tail(struct query *q)
{
	__u32 at = DNS_HEADER + 1 + bound(LOAD(q->name_length), 0xff);
	__u32 length = LOAD(q->length);
	__u8 more = q->packet[11];

	if (at + QUESTION_TAIL > length)
		return NAMES_PASSED_MALFORMED;
	q->type = word_at(q->packet + at);
	if (word_at(q->packet + at + 2) != CLASS_IN)
		return NAMES_PASSED_FORM;
	at += QUESTION_TAIL;
	STORE(q->at, at);
	q->edns = more;
	STORE(q->limit, PLAIN_RESPONSE);
	if (!more)
		return at == length ? NAMES_COUNT_END : NAMES_PASSED_MALFORMED;
	if (at + OPT_RECORD > length)
		return NAMES_PASSED_MALFORMED;
	/* Signed by TSIG, for one; or a later version of EDNS. */
	if (q->packet[at] || word_at(q->packet + at + 1) != TYPE_OPT || q->packet[at + 6])
		return NAMES_PASSED_FORM;
	if (at + OPT_RECORD + word_at(q->packet + at + 9) != length)
		return NAMES_PASSED_MALFORMED;
	q->client_room = word_at(q->packet + at + 3);
	q->wants_dnssec = q->packet[at + 7] & DO_BIT;
	if (q->client_room > PLAIN_RESPONSE)
		STORE(q->limit, q->client_room < LONGEST_RESPONSE ? q->client_room : LONGEST_RESPONSE);
	STORE(q->limit, LOAD(q->limit) - OPT_RECORD);
	return NAMES_COUNT_END;
}

/* Whether `length` bytes of the question's name, from `offset` on, are those of the entry. */
static __always_inline bool same_name(struct query *q, __u32 offset, __u32 length, struct name_entry *entry)
{
	struct long_name *rest;

	if (entry->length != length)
		return false;
	offset = bound(offset, 0xff);
	for (__u32 i = 0; i < INLINE_NAME / 8; i++) {
		__u64 asked, stored;

		if (i * 8 >= length)
			return true;
		asked = *(__u64 *)(q->name + offset + i * 8);
		stored = *(__u64 *)(entry->name + i * 8);
		asked ^= stored;
		if (length - i * 8 < 8)
			asked <<= 64 - (length - i * 8) * 8;
		if (asked)
			return false;
	}
	if (length == INLINE_NAME)
		return true;
	rest = chunked_lookup(&long_names, entry->long_name);
	if (!rest)
		return false;
	for (__u32 i = 0; i < sizeof(*rest) / 8; i++) {
		__u32 at = INLINE_NAME + i * 8;
		__u64 asked;

		if (at >= length)
			return true;
		asked = *(__u64 *)(q->name + offset + at);
		asked ^= *(__u64 *)(rest->byte + i * 8);
		if (length - at < 8)
			asked <<= 64 - (length - at) * 8;
		if (asked)
			return false;
	}
	return true;
}

/*
 * The entry of a part of the question's name: its id, or -1. The memory of a hash's element may be reused while it is
 * read: it carries another fingerprint then.
 */
VERIFIED_ONCE int names_find(__u64 key, __u32 offset, __u32 length)
{
	struct query *q = this_query();
	const __u32 zero = 0;
	void *hash = bpf_map_lookup_elem(&names, &zero);
	struct name_entry *entry;

	if (!q || !hash)
		return -1;
	for (int i = 0; i < LOOKUP_RETRIES; i++) {
		__u64 *found = bpf_map_lookup_elem(hash, &key);
		__u64 ref;

		if (!found)
			return -1;
		ref = *(volatile __u64 *)found;
		if (ref >> 32 != key >> 32)
			continue;
		entry = chunked_lookup(&name_entries, ref);
		return entry && same_name(q, offset, length, entry) ? (int)ref : -1;
	}
	return -1;
}

/* A name's label `label` and all behind it, salted. */
static __always_inline int find_suffix(struct query *q, __u32 label, __u64 salt)
{
	__u32 at = label & LABEL_MAX;
	__u32 offset = q->offset_of[at];

	return names_find((LOAD(q->sum) - q->sum_at[at]) * q->inverse_at[at] ^ salt, offset,
			  LOAD(q->name_length) - offset);
}

/* The entry of the longest wildcard, or exclusion, that the name lies below. */
static __always_inline int find_wildcard(struct query *q, __u64 depths)
{
	__u32 labels = LOAD(q->labels);

	for (__u32 i = 0; i < sizeof(depths); i++) {
		__u32 depth = depths & 0xff;
		int id;

		if (!depth)
			break;
		depths >>= 8;
		if (depth >= labels)
			continue;
		id = find_suffix(q, labels - depth, SALT_WILDCARD);
		if (id >= 0)
			return id;
	}
	return -1;
}

/* The entry of the part before the machine's search domain. */
static __always_inline int find_below_search(struct query *q, __u64 depth)
{
	__u32 labels = LOAD(q->labels);
	__u32 label;

	if (!depth || depth >= labels)
		return -1;
	label = (labels - depth) & LABEL_MAX;
	if (find_suffix(q, label, SALT_SEARCH) < 0)
		return -1;
	return names_find(q->sum_at[label], 0, q->offset_of[label]);
}

/* The name itself, then as one below the search domain, then below the longest wildcard. */
static __always_inline int find_name(struct query *q, const struct names_settings *set)
{
	int id = names_find(LOAD(q->sum), 0, LOAD(q->name_length));

	if (id < 0)
		id = find_below_search(q, set->search_depth);
	if (id < 0)
		id = find_wildcard(q, set->wildcard_depths);
	return id;
}

/* Starts a resource record at the response's end. Gives where its data begins; 0 when `size` bytes of it don't fit. */
static __always_inline __u32 put_record(struct query *q, __u16 type, __u16 size)
{
	__u32 at = bound(LOAD(q->at), OFFSET_MASK);

	if (at + 12 + size > LOAD(q->limit))
		return 0;
	put_word(q->packet + at, NAME_POINTER);
	put_word(q->packet + at + 2, type);
	put_word(q->packet + at + 4, CLASS_IN);
	put_word(q->packet + at + 6, 0);
	put_word(q->packet + at + 8, TTL_SECONDS);
	put_word(q->packet + at + 10, size);
	STORE(q->at, at + 12 + size);
	STORE(q->count, LOAD(q->count) + 1);
	return at + 12;
}

/* Puts the address with this id into the response. False when there is no room for it, or no such address. */
VERIFIED_ONCE int names_put_address(__u32 id, __u32 v6)
{
	struct query *q = this_query();
	struct address *address;
	__u32 at;

	if (!q)
		return false;
	address = chunked_lookup(&name_addresses, id);
	if (!address)
		return false;
	at = put_record(q, v6 ? TYPE_AAAA : TYPE_A, v6 ? 16 : 4);
	if (!at)
		return false;
	at = bound(at, OFFSET_MASK);
	if (v6)
		__builtin_memcpy(q->packet + at, address, 16);
	else
		__builtin_memcpy(q->packet + at, &address->word[3], 4);
	return true;
}

/* As many addresses as fit, from a random one on. */
VERIFIED_ONCE int names_put_addresses(__u32 first, __u32 total, __u32 v6)
{
	__u32 start = total ? bpf_get_prandom_u32() % total : 0;

	for (__u32 i = 0; i < MOST_ANSWERS && i < total; i++) {
		__u32 id = start + i;

		if (id >= total)
			id -= total;
		if (!names_put_address(first + id, v6))
			break;
	}
	return 0;
}

/* The name of another entry, as a PTR record's data. */
static __always_inline void put_pointer(struct query *q, __u32 id)
{
	struct name_entry *entry = chunked_lookup(&name_entries, id);
	struct long_name *rest;
	__u32 at, length;

	if (!entry)
		return;
	length = entry->length;
	at = put_record(q, TYPE_PTR, length + 1);
	if (!at)
		return;
	at = bound(at, OFFSET_MASK);
	/* Excess bytes are cut off, or overwritten by the following record. */
	__builtin_memcpy(q->packet + at, entry->name, INLINE_NAME);
	if (length > INLINE_NAME) {
		rest = chunked_lookup(&long_names, entry->long_name);
		if (!rest)
			return;
		__builtin_memcpy(q->packet + at + INLINE_NAME, rest, sizeof(*rest));
	}
	q->packet[at + length] = 0;
}

/* Turns the query in `q->packet` into the response. Gives what to count it as. */
static __always_inline __u32 build_response(struct query *q, struct name_entry *entry, const struct names_settings *set)
{
	/* One load: the run is the old one or the new one. */
	const union {
		__u64 word;
		struct name_answers run;
	} answers = { .word = *(volatile __u64 *)&entry->answers };
	__u32 event = NAMES_ANSWERED_EMPTY;
	__u16 type = q->type;
	__u32 total = 0;
	__u32 at;

	STORE(q->count, 0);
	if (entry->kind == ENTRY_POINTER) {
		if (type == TYPE_PTR || type == TYPE_ANY) {
			event = NAMES_ANSWERED_PTR;
			put_pointer(q, answers.run.first);
		}
	} else if (type == TYPE_A || (type == TYPE_ANY && answers.run.v4)) {
		event = NAMES_ANSWERED_A;
		total = answers.run.v4;
		names_put_addresses(answers.run.first, total, false);
	} else if (type == TYPE_AAAA || type == TYPE_ANY) {
		event = NAMES_ANSWERED_AAAA;
		total = answers.run.v6;
		names_put_addresses(answers.run.first + answers.run.v4, total, true);
	}
	if (!LOAD(q->count))
		event = NAMES_ANSWERED_EMPTY;
	q->packet[2] = QR | AA | (q->packet[2] & RD);
	/* Off by default: a client that sees it asks by TCP a server that may not know the name. See docs/names.md. */
	if (LOAD(q->count) < total && set->flags & NAMES_TRUNCATE)
		q->packet[2] |= TC;
	q->packet[3] = RA | (q->packet[3] & CD);
	put_word(q->packet + 6, LOAD(q->count));
	put_word(q->packet + 8, 0);
	put_word(q->packet + 10, q->edns);
	at = bound(LOAD(q->at), OFFSET_MASK);
	if (q->edns) {
		__builtin_memset(q->packet + at, 0, OPT_RECORD);
		q->packet[at + 2] = TYPE_OPT;
		put_word(q->packet + at + 3, LONGEST_RESPONSE);
		q->packet[at + 7] = q->wants_dnssec;
		STORE(q->at, at + OPT_RECORD);
	}
	return event;
}

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
