/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

#include <linux/types.h>

/* Why a connection is refused; src/mesh/model.ts has the same list. Append only: counters outlive programs. */
enum reason {
	REASON_NONE = 0,
	REASON_NO_ENDPOINT = 1,
	REASON_NO_FAMILY = 2,
	REASON_MISSING_CLUSTER = 3,
	REASON_TLS_REQUIRED = 4,
	REASON_POLICY = 5,
	REASON_NOT_IN_REGISTRY = 6,
	REASON_MAX_CONNECTIONS = 7,
	REASON_UNDECIDABLE = 8,
	REASON_INTERNAL = 9,
	REASON_TUNNEL_ENTRY = 10,
	REASON_OTHER_NETNS = 11,
	REASON_COUNT = 12,
};

/* What becomes of a connection: the upper byte of a target word. 0 is a frontend that is no more. */
enum action {
	ACTION_ABSENT = 0,
	ACTION_CLUSTER = 1,
	ACTION_PASS = 2,
	ACTION_REFUSE = 3,
};

/*
 * A target word: action in bits 56-63, service id in bits 32-55, and in bits 0-31 a cluster id (ACTION_CLUSTER)
 * or a reason (ACTION_REFUSE). It is the unit of publication: always read and written whole.
 */
static __always_inline __u64 target_word(enum action action, __u32 service, __u32 value)
{
	return (__u64)action << 56 | (__u64)service << 32 | value;
}

static __always_inline enum action target_action(__u64 word)
{
	return word >> 56;
}

static __always_inline __u32 target_service(__u64 word)
{
	return (word >> 32) & 0xffffff;
}

static __always_inline __u32 target_value(__u64 word)
{
	return word;
}
