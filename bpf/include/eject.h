/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Endpoints whose connects fail in a row get no connections for a while, so that hours without an agent are not worse
 * than they need to be. Outcomes are known when sockets end, in any order and late: only those of connects that began
 * within the present row count, and none that began before the last ejection was over.
 */
#include "../maps/keep.h"
#include "outcome.h"
#include "../maps/tunnel-port.h"
#include "walk.h"

#define NSEC_PER_MSEC 1000000ull
/* Without word for that long the tables are stale, and clusters that eject nobody do. */
#define STALE_NS (10000 * NSEC_PER_MSEC)
/* Connections that succeeded and still live are not seen: failures so far apart are no row. */
#define ROW_NS (300000 * NSEC_PER_MSEC)
/* How many slots are looked at to find the share that is ejected; of a longer run a sample. */
#define SHARE_SLOTS 256

/*
 * Global functions of numbers alone are verified once each, by themselves; their bodies would otherwise be walked at
 * every turn of the loops around them, and the programs be too large.
 */

static __always_inline bool is_stale(const struct settings *set, __u64 now)
{
	return *(volatile __u64 *)&set->current_ns + STALE_NS < now;
}

static __always_inline struct ejection ejection_of(const struct descriptor *desc, __u64 now)
{
	__u32 zero = 0;
	const struct settings *set = bpf_map_lookup_elem(&settings, &zero);
	struct ejection ejection = desc->ejection;

	if (!ejection.after && set && is_stale(set, now)) {
		ejection.after = 5;
		ejection.base_ms = 30000;
		ejection.longest_ms = 300000;
		ejection.percent = 50;
		ejection.enforcing = 100;
	}
	return ejection;
}

static __always_inline bool has_ejection(__u32 endpoint, __u64 now)
{
	struct endpoint_load *load = chunked_lookup(&endpoint_loads, endpoint);

	return load && *(volatile __u64 *)&load->ejected_until_ns > now;
}

__noinline int is_ejected(__u32 endpoint, __u64 now)
{
	return has_ejection(endpoint, now);
}

__noinline __u32 slot_of(__u32 first_line, __u32 index)
{
	struct run run = { .first_line = first_line };

	return slot_at(&run, index);
}

#define OTHERS 65536

/*
 * 5.10 allows 512 bytes of stack over a chain of calls, in steps of 32, and the longest chain ends here. Later kernels count
 * less, and verify a function of its own faster.
 */
#ifdef KMESH_NO_FETCH_ATOMICS
#define CHAIN_END static __always_inline
#else
#define CHAIN_END __noinline
#endif

/* A slot of a run as a number to be summed up: one for `endpoint`, OTHERS for another one that is ejected. */
CHAIN_END __u32 slot_share(__u32 first_line, __u32 index, __u32 endpoint, __u64 now)
{
	struct run run = { .first_line = first_line };
	__u32 slot = slot_at(&run, index);

	if (slot == endpoint)
		return 1;
	return has_ejection(slot, now) ? OTHERS : 0;
}

/* Of a run's slots, or a sample: how many are this endpoint's, other ejected ones', and looked at; 16 bits each. */
__noinline __u64 run_share(__u32 first_line, __u32 count, __u32 endpoint, __u64 now)
{
	__u32 step = (count + SHARE_SLOTS - 1) / SHARE_SLOTS;
	__u32 sum = 0, at = 0;
	__u64 seen = 0;

	for (__u32 i = 0; i < SHARE_SLOTS && at < count; i++, at += step, seen++)
		sum += slot_share(first_line, at, endpoint, now);
	return seen << 32 | sum;
}

/* Whether the share of a cluster, with its further priorities, that is ejected with this endpoint would not be too large. */
__noinline int has_share(__u32 cluster, __u32 endpoint, __u32 is_v4, __u32 percent, __u64 now)
{
	struct descriptor *desc = descriptor_of(cluster);
	__u64 ejected = 0, seen = 0;
	__u32 others = 0;

	for (int i = 0; i <= MAX_FALLBACKS && desc; i++) {
		struct run run = is_v4 ? desc->v4 : desc->v6;
		__u64 share = run_share(run.first_line, run.count, endpoint, now);
		__u32 step = (run.count + SHARE_SLOTS - 1) / SHARE_SLOTS;

		others |= (__u32)share / OTHERS;
		ejected += (__u64)((__u32)share / OTHERS + (__u32)share % OTHERS) * step;
		seen += (share >> 32) * step;
		desc = desc->fallback ? chunked_lookup(&descriptors, desc->fallback) : NULL;
	}
	return percent && (!others || ejected * 100 <= percent * seen);
}

/* False when another CPU was faster. */
static __always_inline bool replace(__u64 *word, __u64 old, __u64 new)
{
#ifdef KMESH_NO_FETCH_ATOMICS
	if (*(volatile __u64 *)word != old)
		return false;
	*(volatile __u64 *)word = new;
	return true;
#else
	return __sync_val_compare_and_swap(word, old, new) == old;
#endif
}

static __always_inline void note_ejection(struct cluster_load *cluster, __u64 until, __u64 now)
{
	if (cluster->ejected_until_ns <= now)
		cluster->ejected = 0;
	__sync_fetch_and_add(&cluster->ejected, 1);
	__sync_fetch_and_add(&cluster->ejections, 1);
	if (cluster->ejected_until_ns < until)
		*(volatile __u64 *)&cluster->ejected_until_ns = until;
}

/*
 * Whether `kmesh tunnel` reaches the endpoint for the apps. A connect() only says then how the tunnel is. The tunnel itself
 * records how the endpoint is, by the rules here (src/datapath/tunnel-outcomes.ts).
 */
static __always_inline bool is_tunnelled(const struct endpoint *endpoint)
{
	return endpoint->port == bpf_htons(TUNNEL_PORT) && endpoint->is_v4 &&
	       (endpoint->address.word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

/* One more connect to the endpoint failed; it began at `since`. */
__noinline int outlier_record_failure(__u32 service, __u32 cluster_id, __u32 endpoint_id, __u64 since)
{
	struct service_counters *counters = chunked_lookup(&service_counts, service);
	struct endpoint_load *load;
	struct cluster_load *cluster;
	struct endpoint *endpoint;
	struct descriptor *desc;
	struct ejection ejection;
	__u64 now, until, end;

	/* At once: with another pointer in this frame, the chain below connect6 has no room on 5.10. */
	if (counters)
		__sync_fetch_and_add(&counters->failed, 1);
	load = chunked_lookup(&endpoint_loads, endpoint_id);
	cluster = chunked_lookup(&cluster_loads, cluster_id);
	endpoint = chunked_lookup(&endpoints, endpoint_id);
	desc = descriptor_of(cluster_id);
	if (!load || !cluster || !endpoint || is_tunnelled(endpoint))
		return 0;
	__sync_fetch_and_add(&load->failed, 1);
	now = bpf_ktime_get_ns();
	if (!desc || desc->kind != CLUSTER_ENDPOINTS)
		return 0;
	ejection = ejection_of(desc, now);
	until = *(volatile __u64 *)&load->ejected_until_ns;
	if (until > now) {
		/* Ejected for another cluster: this one saw the same. */
		if (ejection.after && cluster->ejected_until_ns < until &&
		    has_share(cluster_id, endpoint_id, endpoint->is_v4, ejection.percent, now))
			note_ejection(cluster, until, now);
		return 0;
	}
	if (since < until)
		return 0;
	if (!load->failures || since > until + ROW_NS) {
		/* A row begins. */
		if (!replace(&load->ejected_until_ns, until, since))
			return 0;
		until = since;
		load->failures = 0;
	}
	__sync_fetch_and_add(&load->failures, 1);
	if (!ejection.after || *(volatile __u32 *)&load->failures < ejection.after)
		return 0;
	if (bpf_get_prandom_u32() % 100 >= ejection.enforcing ||
	    !has_share(cluster_id, endpoint_id, endpoint->is_v4, ejection.percent, now)) {
		load->failures = 0;
		return 0;
	}
	end = (load->ejections + 1ull) * ejection.base_ms;
	if (end > ejection.longest_ms)
		end = ejection.longest_ms;
	end = now + end * NSEC_PER_MSEC;
	if (!replace(&load->ejected_until_ns, until, end))
		return 0;
	load->failures = 0;
	load->ejections++;
	note_ejection(cluster, end, now);
	return 0;
}

/* A connect that began in the present row, or after the last ejection, succeeded. */
static __always_inline void outlier_record_success(const struct socket_state *state, struct endpoint_load *load)
{
	const struct endpoint *endpoint;

	if (!load->failures && !load->ejections)
		return;
	endpoint = chunked_lookup(&endpoints, state->endpoint);
	if (!endpoint || is_tunnelled(endpoint))
		return;
	if (state->since_ns < *(volatile __u64 *)&load->ejected_until_ns)
		return;
	load->failures = 0;
	load->ejections = 0;
}

static __always_inline void outlier_update(const struct socket_state *state, struct endpoint_load *load,
					   enum outcome outcome)
{
	if (outcome == OUTCOME_FAILED)
		outlier_record_failure(state->service, state->cluster, state->endpoint, state->since_ns);
	else if (outcome == OUTCOME_CONNECTED)
		outlier_record_success(state, load);
}
