/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Counts connections into the rows of traffic.h. A governed socket carries what is counted of it so far, so each byte and
 * each end is counted once, whoever counts first: the flush (flush.bpf.c) while it lives, sock_release at its end, or
 * connect4/6 when it connects again. What a socket tells, and what it does not, was tried on 5.10, 6.1 and 6.18.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>

#include "source.h"

static __always_inline struct traffic *traffic_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&traffic, &zero);
}

static __always_inline struct flow_row *other_row(__u32 at)
{
	return bpf_map_lookup_elem(&traffic_other, &at);
}

/* The row of a key, made when it is missing; where there is no room, the other one. `rows` must be a map by name. */
static __always_inline struct flow_row *find_row(void *rows, const struct flow_key *key, __u32 other)
{
	struct flow_row *row = bpf_map_lookup_elem(rows, key);
	struct flow_row *blank;

	if (row)
		return row;
	blank = other_row(OTHER_BLANK);
	if (!blank)
		return NULL;
	bpf_map_update_elem(rows, key, blank, BPF_NOEXIST);
	row = bpf_map_lookup_elem(rows, key);
	return row ? row : other_row(other);
}

/* Adds to `counter` what `now` exceeds `done`, and moves `done` up: never twice, never back, whoever runs at the same time. */
static __always_inline void settle(__u64 *done, __u64 now, __u64 *counter)
{
#ifdef KMESH_NO_FETCH_ATOMICS
	/* Nobody flushes there. */
	if (now > *done)
		__sync_fetch_and_add(counter, now - *done);
	*done = now;
#else
	for (int i = 0; i < 8; i++) {
		__u64 old = *(volatile __u64 *)done;

		if (now <= old)
			return;
		if (__sync_val_compare_and_swap(done, old, now) != old)
			continue;
		__sync_fetch_and_add(counter, now - old);
		return;
	}
#endif
}

static __always_inline void settle32(__u32 *done, __u32 now, __u64 *counter)
{
#ifdef KMESH_NO_FETCH_ATOMICS
	if (now > *done)
		__sync_fetch_and_add(counter, now - *done);
	*done = now;
#else
	for (int i = 0; i < 8; i++) {
		__u32 old = *(volatile __u32 *)done;

		if (now <= old)
			return;
		if (__sync_val_compare_and_swap(done, old, now) != old)
			continue;
		__sync_fetch_and_add(counter, now - old);
		return;
	}
#endif
}

static __always_inline struct flow_key key_of(const struct socket_state *state)
{
	struct flow_key key = {
		.source = state->source,
		.direction = FLOW_OUT,
		.protocol = IPPROTO_TCP,
		.service = state->service,
		.cluster = state->cluster,
		.endpoint = state->endpoint,
	};

	return key;
}

/* Where a socket's connection is counted. `flow` is what it was just now. */
static __always_inline struct flow_row *row_of(const struct flow_key *key, __u32 flow)
{
	return flow == FLOW_OTHER ? other_row(OTHER_OUT) : find_row(&flow_rows, key, OTHER_OUT);
}

/* Counts the connection as opened, once. Gives its row. */
static __always_inline struct flow_row *open_flow(struct socket_state *state, const struct flow_key *key)
{
	struct flow_row *row = row_of(key, state->flow);
	__u32 next = row && row == other_row(OTHER_OUT) ? FLOW_OTHER : FLOW_OPENED;

	if (!row || state->flow != FLOW_BEGUN)
		return row;
#ifdef KMESH_NO_FETCH_ATOMICS
	state->flow = next;
#else
	if (__sync_val_compare_and_swap(&state->flow, FLOW_BEGUN, next) != FLOW_BEGUN)
		return row;
#endif
	__sync_fetch_and_add(&row->opened, 1);
	return row;
}

/*
 * A connection begins; what connect() decided stands in `state`. It costs no row here: the next flush or its end counts
 * it. Where nothing flushes, open_at_once does.
 */
static __always_inline void begin_flow(struct socket_state *state)
{
	struct traffic *set = traffic_settings();

	state->flow = FLOW_NONE;
	if (!set || !(set->flags & TRAFFIC_COUNT))
		return;
	state->source = current_source();
	state->pid = bpf_get_current_pid_tgid() >> 32;
	state->flushed_sent = 0;
	state->flushed_received = 0;
	state->flushed_retransmits = 0;
#ifdef KMESH_NO_FETCH_ATOMICS
	state->flow = FLOW_BEGUN;
#else
	/* Behind all of the above for a flush on another CPU. */
	__sync_lock_test_and_set(&state->flow, FLOW_BEGUN);
#endif
}
