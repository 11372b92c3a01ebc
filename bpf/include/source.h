/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The source of a connection: the systemd unit of the current task by its cgroup's path, otherwise the cgroup or the user. A
 * source is a 48-bit number that is stable over boots: the hash of the name, which is in `source_names`, or SOURCE_USER and
 * a user's id.
 */
#include "enrolment.h"
#include "../maps/traffic.h"

#define SOURCE_BITS 48
#define SOURCE_USER (1ull << 47)
/* In `source_cache`: the tasks of this cgroup are told apart by their users. */
#define SOURCE_BY_USER 1
/* In `source_cache`: `source_names` had no room for this cgroup's name. The agent clears it when there is room again. */
#define SOURCE_UNNAMED 2

static __always_inline __u64 user_source(void)
{
	return SOURCE_USER | (__u32)bpf_get_current_uid_gid();
}

/* Sessions and user managers are as many as there were logins: their user is who connects. */
static __always_inline bool is_login(const struct unit_name *unit)
{
	const union {
		char text[8];
		__u64 word;
	} session = { .text = { 's', 'e', 's', 's', 'i', 'o', 'n', '-' } };
	const char *name = unit->byte;

	if (*(const __u64 *)name == session.word)
		return true;
	return name[0] == 'u' && name[1] == 's' && name[2] == 'e' && name[3] == 'r' && name[4] == '@';
}

static __always_inline __u64 hash_name(const struct unit_name *unit)
{
	const __u64 *word = (const __u64 *)unit;
	__u64 hash = 0x9e3779b97f4a7c15;

	for (int i = 0; i < (int)(sizeof(*unit) / sizeof(*word)); i++) {
		hash ^= word[i];
		hash *= 0xbf58476d1ce4e5b9;
		hash ^= hash >> 29;
	}
	hash &= SOURCE_USER - 1;
	return hash > SOURCE_UNNAMED ? hash : SOURCE_UNNAMED + 1;
}

/* The source that a unit's or another cgroup's name stands for, SOURCE_BY_USER, or SOURCE_UNNAMED. */
__noinline __u64 name_source(__u64 node)
{
	const char *name = BPF_CORE_READ((struct kernfs_node *)node, name);
	struct unit_name unit __attribute__((aligned(8)));
	__u64 source;

	/* Names that are too long are cut off here, and still name a source. */
	read_unit_name(&unit, &name);
	if (!unit.byte[0] || is_login(&unit))
		return SOURCE_BY_USER;
	source = hash_name(&unit);
	if (!bpf_map_lookup_elem(&source_names, &source) &&
	    bpf_map_update_elem(&source_names, &source, &unit, BPF_NOEXIST))
		/* Unless another CPU was faster. */
		return bpf_map_lookup_elem(&source_names, &source) ? source : SOURCE_UNNAMED;
	return source;
}

/* The outermost cgroup between this one and the root that is no slice has the name: units lie in slices. */
static __always_inline __u64 find_source(__u64 node, __u64 root)
{
	__u64 outermost = 0;

	for (int i = 0; node && i < MAX_CGROUP_LEVELS; i++) {
		if (BPF_CORE_READ((struct kernfs_node *)node, id) == root)
			break;
		if (!(classify_cgroup(node) & CGROUP_SLICE))
			outermost = node;
		node = (__u64)kernfs_parent((struct kernfs_node *)node);
	}
	return outermost ? name_source(outermost) : SOURCE_BY_USER;
}

/*
 * What the cgroup `id` is as a source: a name's, SOURCE_BY_USER, or 0 when its name found no room. `node` is the address of
 * its kernfs_node; 0: it is the current task's.
 */
__noinline __u64 cgroup_source(__u64 id, __u64 node)
{
	__u32 at = id % SOURCE_CACHE;
	__u64 *cached = bpf_map_lookup_elem(&source_cache, &at);
	__u64 tag = id / SOURCE_CACHE << SOURCE_BITS;
	struct enrolment *current;
	__u64 word, source;
	__u32 zero = 0;

	if (!cached)
		return 0;
	word = *(volatile __u64 *)cached;
	source = word & ((1ull << SOURCE_BITS) - 1);
	if (!source || word - source != tag) {
		current = bpf_map_lookup_elem(&enrolment, &zero);
		if (!node)
			node = (__u64)task_cgroup();
		source = find_source(node, current ? current->root : 0);
		*(volatile __u64 *)cached = tag | source;
	}
	if (source == SOURCE_UNNAMED) {
		struct traffic *set = bpf_map_lookup_elem(&traffic, &zero);

		if (set)
			__sync_fetch_and_add(&set->unnamed, 1);
		return 0;
	}
	return source;
}

/* The source of the current task; 0 when it has no name. */
static __always_inline __u64 current_source(void)
{
	__u64 source = cgroup_source(bpf_get_current_cgroup_id(), 0);

	return source == SOURCE_BY_USER ? user_source() : source;
}
