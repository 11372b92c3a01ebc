// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * connect(): where a connection to a frontend goes is decided here, once. The walk is frontend -> target word ->
 * cluster descriptor (a split goes round once more) -> slot -> endpoint, each step one look-up by id.
 * getpeername() then shows the app the address that it asked for, and an app that is called through the tunnel its caller.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "include/agent.h"
#include "maps/caller.h"
#include "include/exempt.h"
#define FLOW_AT_CONNECT
#include "include/kernel.h"
#include "include/decided.h"
#include "maps/keep.h"
#include "include/live.h"
#include "include/socket.h"
#include "maps/tables.h"
#include "maps/tunnel.h"
#include "include/enrolment.h"
#include "maps/verdict.h"
#include "include/walk.h"
#include "connect/frontend.h"
#include "connect/balance.h"
#include "connect/ejection.h"
#include "connect/port.h"
#include "connect/tunnel.h"

#define PROCEED 1
#define DENY 0

static __always_inline bool is_enrolled_task(const struct settings *set)
{
	return set->flags & SETTING_EVERY_CGROUP || is_enrolled_cgroup(bpf_get_current_cgroup_id(), NULL);
}

static __always_inline bool is_agent(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u64 *start = bpf_map_lookup_elem(&agents, &tgid);

	return start && start_ticks((struct task_struct *)bpf_get_current_task()) == *start;
}

static __always_inline bool matches_exclusion(void *trie, struct prefix_key *key, __be16 port)
{
	key->port = port;
	return bpf_map_lookup_elem(trie, key) != NULL;
}

static __always_inline bool is_excluded(const struct settings *set, const struct request *req)
{
	struct prefix_key key = host_key(req);
	__u32 zero = 0;
	void *trie;

	if (!(set->flags & SETTING_EXCLUSIONS) && !may_be_broadcast(&req->address, set->broadcast_filter))
		return false;
	trie = bpf_map_lookup_elem(&exclusions, &zero);
	if (!trie)
		return false;
	return matches_exclusion(trie, &key, req->port) || matches_exclusion(trie, &key, 0);
}

/*
 * The run of slots that this socket can reach: the family that it asked for first, then the other one where the
 * socket allows it. An empty run means that there is none.
 */
static __always_inline struct run reachable_run(struct bpf_sock_addr *ctx, const struct descriptor *desc,
						const struct request *req)
{
	struct run none = {};

	if (!req->v6_socket)
		return desc->v4;
	if (is_mapped(&req->address))
		return desc->v4.count ? desc->v4 : none;
	if (desc->v6.count)
		return desc->v6;
	return desc->v4.count && !is_v6_only(ctx->sk) ? desc->v4 : none;
}

/* The same families as bits. */
static __always_inline __u32 reachable_families(struct bpf_sock_addr *ctx, const struct request *req)
{
	if (!req->v6_socket || is_mapped(&req->address))
		return REACHES_V4;
	return is_v6_only(ctx->sk) ? REACHES_V6 : REACHES_V6 | REACHES_V4;
}

static __always_inline bool is_full(const struct descriptor *desc, const struct cluster_load *load)
{
	return desc->max_connections && load && (__s64)load->live >= desc->max_connections;
}

static __always_inline void choose_endpoint(struct bpf_sock_addr *ctx, const struct settings *set,
					    const struct request *req, const struct descriptor *desc,
					    struct decision *made)
{
	struct run run = reachable_run(ctx, desc, req);
	bool leave_out;
	__u32 slot;

	if (!run.count)
		return refuse(made, desc->v4.count || desc->v6.count ? REASON_NO_FAMILY : REASON_NO_ENDPOINT);
	made->load = chunked_lookup(&cluster_loads, made->cluster);
	if (is_full(desc, made->load))
		return refuse(made, REASON_MAX_CONNECTIONS);
	made->now = bpf_ktime_get_ns();
	leave_out = leaves_out(set, made, desc);
	slot = choose_slot(ctx, set, req, made, desc, &run, leave_out ? made->now : ~0ull);
	if (leave_out) {
		__u32 seed = desc->balance == BALANCE_HASH ? source_hash(ctx, set, req) : bpf_get_prandom_u32();

		slot = usable_slot(run.first_line, run.count, slot, seed, made->now);
		if (desc->fallback && is_ejected(slot, made->now))
			slot = fallback_slot(desc->fallback, reachable_families(ctx, req), slot, seed, made->now);
	}
	if (slot & SLOT_REFUSE)
		return refuse(made, slot & ~SLOT_REFUSE);
	if (ctx->sk && ctx->sk->src_port)
		slot = slot_with_free_port(ctx, run.first_line, run.count, slot, made->now);
	made->endpoint_id = slot;
	made->endpoint = chunked_lookup(&endpoints, slot);
	if (!made->endpoint)
		refuse(made, REASON_INTERNAL);
}

/* The descriptor of the cluster that serves this connection: behind a split, the one whose turn it is. */
static __always_inline struct descriptor *serving_descriptor(struct decision *made)
{
	struct descriptor *desc = descriptor_of(made->cluster);
	struct cluster_load *load;
	__u32 slot;

	if (!desc || desc->kind != CLUSTER_SPLIT)
		return desc;
	if (!desc->v4.count)
		return NULL;
	load = chunked_lookup(&cluster_loads, made->cluster);
	slot = slot_at(&desc->v4, next_turn(load, false) % desc->v4.count);
	if (slot & SLOT_REFUSE) {
		refuse(made, slot & ~SLOT_REFUSE);
		return NULL;
	}
	made->cluster = slot;
	return descriptor_of(slot);
}

/* The address that the app asked for, at the cluster's port. */
static __always_inline void override_port(const struct descriptor *desc, struct decision *made)
{
	made->load = chunked_lookup(&cluster_loads, made->cluster);
	if (is_full(desc, made->load))
		return refuse(made, REASON_MAX_CONNECTIONS);
	made->now = bpf_ktime_get_ns();
	made->endpoint_id = NO_ENDPOINT;
	made->port = desc->port;
}

static __always_inline void resolve_cluster(struct bpf_sock_addr *ctx, const struct settings *set,
					    const struct request *req, struct decision *made)
{
	struct descriptor *desc = serving_descriptor(made);

	if (made->action == ACTION_REFUSE)
		return;
	if (!desc)
		return refuse(made, REASON_INTERNAL);
	switch (desc->kind) {
	case CLUSTER_ENDPOINTS:
		return choose_endpoint(ctx, set, req, desc, made);
	case CLUSTER_PASS:
		made->action = ACTION_PASS;
		return;
	case CLUSTER_REFUSE:
		return refuse(made, desc->reason);
	case CLUSTER_PORT:
		return override_port(desc, made);
	default:
		return refuse(made, REASON_INTERNAL);
	}
}

/* The cheapest and most frequent reasons to pass a connection. They need none of the mesh's tables. */
static __always_inline bool is_governed(struct bpf_sock_addr *ctx, const struct settings *set,
					const struct request *req)
{
	return is_enrolled_task(set) && in_governed_netns(ctx, set);
}

static __always_inline void decide(struct bpf_sock_addr *ctx, const struct settings *set, const struct request *req,
				   struct decision *made)
{
	__u64 word = find_target(set, req);

	if (target_action(word) != ACTION_CLUSTER && target_action(word) != ACTION_REFUSE && !target_service(word))
		return;
	if (is_excluded(set, req) || is_agent() || adds_path(ctx->sk))
		return;
	made->action = target_action(word);
	made->service = target_service(word);
	if (made->action == ACTION_REFUSE)
		made->reason = target_value(word);
	if (made->action != ACTION_CLUSTER)
		return;
	made->cluster = target_value(word);
	resolve_cluster(ctx, set, req, made);
	if (is_out_of_reach(ctx, set, made->endpoint))
		refuse(made, REASON_OTHER_NETNS);
}

static __always_inline void count(const struct settings *set, const struct decision *made)
{
	struct service_counters *counters;

	if (made->action == ACTION_ABSENT)
		return;
	counters = chunked_lookup(&service_counts, made->service);
	if (!counters)
		return;
	if (made->action == ACTION_PASS) {
		__sync_fetch_and_add(&counters->passed, 1);
		return;
	}
	if (set->flags & SETTING_SHADOW) {
		if (made->action == ACTION_REFUSE)
			__sync_fetch_and_add(&counters->would_refuse, 1);
		else
			__sync_fetch_and_add(&counters->would_redirect, 1);
		return;
	}
	if (made->action == ACTION_REFUSE) {
		__u32 reason = made->reason;

		/* One register for the check and the use: 6.1 forgets the bound of a 32-bit value on the stack. */
		barrier_var(reason);
		if (reason < REASON_COUNT)
			__sync_fetch_and_add(&counters->refused[reason], 1);
		return;
	}
	__sync_fetch_and_add(&counters->redirected, 1);
}

/* Drops the state that an earlier connect() left on this socket. The kernel calls us only when it is closed. */
static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	struct mptcp_sock *mptcp;
	struct socket_state *state;
	struct tcp_sock *tcp;

	if (!ctx->sk || !may_be_known(ctx->sk))
		return;
	tcp = bpf_skc_to_tcp_sock(ctx->sk);
	if (!tcp)
		return;
	mptcp = mptcp_of(ctx->sk, tcp);
	if (is_later_subflow(mptcp, tcp))
		return;
	state = mptcp ? bpf_sk_storage_get(&sockets, mptcp, NULL, 0) : bpf_sk_storage_get(&sockets, tcp, NULL, 0);
	if (!state)
		return;
	if (state->flow)
		end_flow(ctx, BPF_TCP_CLOSE);
	end_connection(state, (struct sock *)tcp, BPF_TCP_CLOSE);
	state->flags = 0;
}

/*
 * Stores on the socket what was decided. Where the kernel has no memory for the storage, the connection goes to its endpoint
 * all the same: a refusal would turn a shortage into an outage. getpeername() then shows the endpoint, and the connection is
 * in no live count and no traffic row; `redirected` counts it.
 */
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct request *req, const struct decision *made)
{
	const struct tcp_sock *tcp;
	struct mptcp_sock *mptcp;
	struct socket_state *state;
	bool is_kernel_owned, is_new;

	if (!ctx->sk)
		return;
	tcp = tcp_of(ctx->sk);
	if (!tcp)
		return;
	mptcp = mptcp_of(ctx->sk, tcp);
	if (mptcp) {
		state = bpf_sk_storage_get(&sockets, mptcp, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		is_kernel_owned = is_kernel_socket((struct sock *)mptcp);
	} else {
		state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		is_kernel_owned = is_kernel_socket((struct sock *)tcp);
	}
	if (!state)
		return;
	is_new = !state->version;
	state->version = 1;
	state->service = made->service;
	state->cluster = made->cluster;
	state->endpoint = made->endpoint_id;
	state->asked = req->address;
	state->asked_port = req->port;
	state->sequence = tcp->write_seq;
	state->since_ns = made->now;
	state->flags = mptcp ? SOCKET_REDIRECTED | SOCKET_MPTCP : SOCKET_REDIRECTED;
	if (is_kernel_owned)
		return;
	begin_connection(state, made->load);
	if (!mptcp && ctx->protocol == IPPROTO_TCP) {
		begin_flow(state, is_new);
		open_at_once(ctx);
	}
}

static __always_inline void record_refusal(const struct request *req, const struct decision *made)
{
	__u64 number;
	struct recent *record = begin_recent(RECENT_REFUSED, &number);

	if (!record)
		return;
	add_task(record);
	record->asked = req->address;
	record->asked_port = req->port;
	record->service = made->service;
	record->reason = made->reason;
	finish_recent(record, number);
}

/* EPERM, unless the kernel allows another error. */
static __always_inline int deny(enum reason reason)
{
	if (!can_set_retval())
		return DENY;
	if (reason == REASON_NO_FAMILY || reason == REASON_OTHER_NETNS)
		bpf_set_retval(-EHOSTUNREACH);
	if (reason == REASON_NO_ENDPOINT || reason == REASON_MISSING_CLUSTER || reason == REASON_MAX_CONNECTIONS)
		bpf_set_retval(-ECONNREFUSED);
	return DENY;
}

/* Counts a connection without an endpoint, by its source. */
static __always_inline void count_undirected(const struct decision *made)
{
	const struct traffic *counting = traffic_settings();

	if (!counting || !(counting->flags & TRAFFIC_COUNT))
		return;
	if (made->action == ACTION_REFUSE)
		count_decided(FLOW_REFUSED, made->service, made->reason, current_source());
	else if (made->action == ACTION_PASS)
		count_decided(FLOW_PASSED, made->service, 0, current_source());
}

/*
 * Decides, counts and remembers. Gives PROCEED or DENY. `made->endpoint` is where to go; when it is NULL the address stays,
 * and so does the port unless `made->port` names another one.
 */
static __always_inline int govern(struct bpf_sock_addr *ctx, const struct request *req, struct decision *made)
{
	__u32 zero = 0;
	const struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	if (!set)
		return PROCEED;
	forget(ctx);
	if (is_exempt_address(&req->address)) {
		if (!enters_tunnel(ctx, set, req))
			return PROCEED;
		refuse(made, REASON_TUNNEL_ENTRY);
		count(set, made);
		record_refusal(req, made);
		return DENY;
	}
	if (!is_governed(ctx, set, req))
		return PROCEED;
	decide(ctx, set, req, made);
	count(set, made);
	if (made->action == ACTION_CLUSTER && !(set->flags & SETTING_SHADOW)) {
		remember(ctx, req, made);
		return PROCEED;
	}
	made->endpoint = NULL;
	made->port = 0;
	if (!(set->flags & SETTING_SHADOW))
		count_undirected(made);
	if (made->action == ACTION_REFUSE && !(set->flags & SETTING_SHADOW)) {
		record_refusal(req, made);
		return deny(made->reason);
	}
	return PROCEED;
}

/* An MPTCP socket connects by a subflow, which is a TCP socket: see include/socket.h. */
static __always_inline bool is_tcp(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct request req = {
		.address = { .word = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 } },
		.port = ctx->user_port,
		.v6_socket = false,
	};
	struct decision made = {};
	int verdict;

	if (!is_tcp(ctx))
		return PROCEED;
	verdict = govern(ctx, &req, &made);
	if (made.endpoint) {
		ctx->user_ip4 = made.endpoint->address.word[3];
		ctx->user_port = made.endpoint->port;
	} else if (made.port) {
		ctx->user_port = made.port;
	}
	return verdict;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct request req = {
		.address = { .word = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } },
		.port = ctx->user_port,
		.v6_socket = true,
	};
	struct decision made = {};
	int verdict;

	if (!is_tcp(ctx))
		return PROCEED;
	verdict = govern(ctx, &req, &made);
	if (made.endpoint) {
		ctx->user_ip6[0] = made.endpoint->address.word[0];
		ctx->user_ip6[1] = made.endpoint->address.word[1];
		ctx->user_ip6[2] = made.endpoint->address.word[2];
		ctx->user_ip6[3] = made.endpoint->address.word[3];
		ctx->user_port = made.endpoint->port;
	} else if (made.port) {
		ctx->user_port = made.port;
	}
	return verdict;
}

/* The address that this socket asked for, or NULL when it was not redirected. */
static __always_inline struct socket_state *redirected(struct bpf_sock_addr *ctx)
{
	struct socket_state *state;

	if (!ctx->sk)
		return NULL;
	state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
	return state && state->flags & SOCKET_REDIRECTED ? state : NULL;
}

/*
 * Whom the app's socket `sk` is connected to by way of the tunnel. The tunnel connects from the address that it connects to,
 * so all other sockets cost one comparison. Nobody else can have these two addresses and ports while the connection lives.
 */
static __always_inline struct caller *caller_of(const struct bpf_sock *sk, const struct address *address, __be16 port)
{
	struct caller_key key = { .address = *address, .port = port, .app_port = bpf_htons(sk->src_port) };

	return bpf_map_lookup_elem(&callers, &key);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct socket_state *state = redirected(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct address address = {};
	struct caller *caller;

	if (state) {
		ctx->user_ip4 = state->asked.word[3];
		ctx->user_port = state->asked_port;
		return PROCEED;
	}
	if (!sk || sk->src_ip4 != ctx->user_ip4)
		return PROCEED;
	address.word[2] = bpf_htonl(0xffff);
	address.word[3] = ctx->user_ip4;
	caller = caller_of(sk, &address, ctx->user_port);
	if (caller && is_mapped(&caller->address)) {
		ctx->user_ip4 = caller->address.word[3];
		ctx->user_port = caller->port;
	}
	return PROCEED;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct socket_state *state = redirected(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct caller *caller;
	struct address address;

	if (state) {
		ctx->user_ip6[0] = state->asked.word[0];
		ctx->user_ip6[1] = state->asked.word[1];
		ctx->user_ip6[2] = state->asked.word[2];
		ctx->user_ip6[3] = state->asked.word[3];
		ctx->user_port = state->asked_port;
		return PROCEED;
	}
	if (!sk || sk->src_ip6[3] != ctx->user_ip6[3] || sk->src_ip6[0] != ctx->user_ip6[0])
		return PROCEED;
	address.word[0] = ctx->user_ip6[0];
	address.word[1] = ctx->user_ip6[1];
	address.word[2] = ctx->user_ip6[2];
	address.word[3] = ctx->user_ip6[3];
	caller = caller_of(sk, &address, ctx->user_port);
	if (caller) {
		ctx->user_ip6[0] = caller->address.word[0];
		ctx->user_ip6[1] = caller->address.word[1];
		ctx->user_ip6[2] = caller->address.word[2];
		ctx->user_ip6[3] = caller->address.word[3];
		ctx->user_port = caller->port;
	}
	return PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
