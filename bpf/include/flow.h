/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Counts connections into the rows of traffic.h. A governed socket carries what is counted of it so far. So each byte and
 * each end is counted once, whoever counts first: the flush (flush.bpf.c) while the connection lives, sock_release at its
 * end, or connect4/6 when the socket connects again. The fields that are read were tried on 5.10, 6.1 and 6.18.
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

/*
 * The row of a key, made when it is missing; where there is no room, the other one. `rows` must be a map by name. What stands
 * in a row as opened (`is_open`) is settled there: no row with a live connection is retired.
 */
static __always_inline struct flow_row *find_row(void *rows, const struct flow_key *key, __u32 other, bool is_open)
{
	struct flow_row *row = bpf_map_lookup_elem(rows, key);
	struct flow_row *blank;

	if (row)
		return is_open || !*(volatile __u32 *)&row->retiring ? row : other_row(other);
	blank = other_row(OTHER_BLANK);
	if (!blank)
		return NULL;
	bpf_map_update_elem(rows, key, blank, BPF_NOEXIST);
	row = bpf_map_lookup_elem(rows, key);
	return row ? row : other_row(other);
}

/* Moves `done` up to `now` and returns by how much. Of two that run at the same time, one gets the difference. */
/* clang-format off */
#ifdef KMESH_NO_FETCH_ATOMICS
/* No flush runs on these kernels. */
#define DEFINE_ADVANCE(name, type)                                         \
	static __always_inline type name(type *done, type now)             \
	{                                                                  \
		type old = *done;                                          \
									   \
		*done = now;                                               \
		return now > old ? now - old : 0;                          \
	}
#else
#define DEFINE_ADVANCE(name, type)                                         \
	static __always_inline type name(type *done, type now)             \
	{                                                                  \
		for (int i = 0; i < 8; i++) {                              \
			type old = *(volatile type *)done;                 \
									   \
			if (now <= old)                                    \
				return 0;                                  \
			if (__sync_val_compare_and_swap(done, old, now) == old) \
				return now - old;                          \
		}                                                          \
		return 0;                                                  \
	}
#endif
/* clang-format on */

DEFINE_ADVANCE(advance, __u64)
DEFINE_ADVANCE(advance32, __u32)

static __always_inline void add_to(__u64 *counter, __u64 difference)
{
	if (difference)
		__sync_fetch_and_add(counter, difference);
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

/* Where a connection is counted. `flow` is what it was just now, `direction` a constant. */
static __always_inline struct flow_row *row_of(const struct flow_key *key, __u32 flow, enum flow_direction direction)
{
	bool is_open = flow == FLOW_OPENED;

	if (direction == FLOW_IN)
		return flow == FLOW_OTHER ? other_row(OTHER_IN) : find_row(&caller_rows, key, OTHER_IN, is_open);
	return flow == FLOW_OTHER ? other_row(OTHER_OUT) : find_row(&flow_rows, key, OTHER_OUT, is_open);
}

/* False when another connection began on the socket: a flush runs at the same time as the app, which may reconnect. */
static __always_inline bool is_same_flow(const struct flow_progress *progress, __u64 since_ns)
{
	return *(const volatile __u64 *)&progress->since_ns == since_ns;
}

/* Counts the connection that began at `since_ns` as opened, once. Gives its row. `direction` is a constant. */
static __always_inline struct flow_row *open_flow(struct flow_progress *progress, const struct flow_key *key,
						  enum flow_direction direction, __u64 since_ns)
{
	__u32 flow = *(volatile __u32 *)&progress->flow;
	struct flow_row *row = row_of(key, flow, direction);
	struct flow_row *other = other_row(direction == FLOW_IN ? OTHER_IN : OTHER_OUT);
	__u32 next = row && row == other ? FLOW_OTHER : FLOW_OPENED;

	if (!row || flow != FLOW_BEGUN)
		return row;
#ifdef KMESH_NO_FETCH_ATOMICS
	progress->flow = next;
#else
	if (__sync_val_compare_and_swap(&progress->flow, FLOW_BEGUN, next) != FLOW_BEGUN)
		return row;
	/* Another connection has begun on the socket since `key` was read: if it got the mark, take the mark back. */
	if (!is_same_flow(progress, since_ns) && __sync_val_compare_and_swap(&progress->flow, next, FLOW_BEGUN) == next)
		return NULL;
#endif
	__sync_fetch_and_add(&row->opened, 1);
	return row;
}

/*
 * A connection begins; what connect() decided stands in `state`. It costs no row here: the next flush or its end counts
 * it. Where nothing flushes, open_at_once does. `is_new` says that the socket got its storage just now: no flush has read it.
 */
static __always_inline void begin_flow(struct socket_state *state, bool is_new)
{
	struct traffic *set = traffic_settings();

#ifdef KMESH_NO_FETCH_ATOMICS
	state->flow = FLOW_NONE;
#else
	/* Orders since_ns, which is written already, before what follows: see settle() in flush.bpf.c. */
	if (!is_new)
		__sync_lock_test_and_set(&state->flow, FLOW_NONE);
#endif
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
