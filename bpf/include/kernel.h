/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* The few kernel types that are read, relocated by CO-RE against the running kernel's BTF. */
#include <stdbool.h>
#include <linux/types.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	struct kernfs_node *parent;
	const char *name;
	__u64 id;
};

/* From 6.15 on. */
struct kernfs_node___6_15 {
	struct kernfs_node *__parent;
};

struct cgroup {
	struct kernfs_node *kn;
};

/* From 5.16 on. */
struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/* A pointer to the cgroup, unless its lowest bit says that net_cls or net_prio have the place. */
struct sock_cgroup_data___5_15 {
	__u64 val;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct task_struct {
	struct task_struct *group_leader;
	__s32 tgid;
	__u64 start_boottime;
	struct css_set *cgroups;
};

struct in6_addr___kernel {
	__be32 words[4];
};

struct sock_common {
	unsigned char skc_state;
	unsigned short skc_family;
	unsigned char skc_ipv6only : 1;
	unsigned long skc_flags;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	struct in6_addr___kernel skc_v6_daddr;
	struct in6_addr___kernel skc_v6_rcv_saddr;
};

struct user_id {
	__u32 val;
};

struct sock {
	struct sock_common __sk_common;
	unsigned int sk_kern_sock : 1;
	int sk_err;
	void *sk_bpf_storage; /* NULL when no program ever gave it storage */
	unsigned long sk_lingertime;
	struct socket *sk_socket; /* NULL before accept() and after close() */
	struct user_id sk_uid;
	struct sock_cgroup_data sk_cgrp_data;
};

struct socket {
	struct file *file;
};

struct file_count {
	__s64 counter;
};

struct file {
	struct file_count f_count;
};

/* From 6.13 on: f_ref is one less than there are references. */
struct file___6_13 {
	struct file_count f_ref;
};

struct sk_buff {
	struct sock *sk;
};

struct inet_sock {
	__be16 inet_sport;
};

struct minmax_sample {
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_sock {
	__u64 bytes_acked;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u64 bytes_received;
	__u64 tcp_mstamp;
	__u32 copied_seq;
	__u32 max_window;
	__u32 rcv_nxt;
	__u32 segs_in;
	__u32 snd_nxt;
	__u32 total_retrans;
	__u32 write_seq;
	struct minmax rtt_min;
};

struct mptcp_sock {
	struct sock *first; /* the subflow that connect() makes */
};

#pragma clang attribute pop

/* From 6.2 on: its fields are then read without a helper call each. */
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak;

/* A field of a kernel object that the verifier knows nothing of. A helper call takes about 36 ns. */
#define FIELD(object, type, field)                                                               \
	(bpf_ksym_exists(bpf_rdonly_cast)                                                        \
		 ? ((const type *)bpf_rdonly_cast(object, bpf_core_type_id_kernel(type)))->field \
		 : BPF_CORE_READ((const type *)(object), field))

static __always_inline struct kernfs_node *kernfs_parent(struct kernfs_node *node)
{
	struct kernfs_node___6_15 *newer = (void *)node;

	if (bpf_core_field_exists(newer->__parent))
		return BPF_CORE_READ(newer, __parent);
	return BPF_CORE_READ(node, parent);
}

/*
 * Helpers that not every kernel has. Their presence is known when the program is relocated, so the verifier of a kernel
 * without one never sees the call.
 */
enum bpf_func_id___set_retval { /* 5.18 */
	BPF_FUNC_set_retval___set_retval = 187,
};

enum bpf_func_id___skc_to_mptcp_sock { /* 5.19 */
	BPF_FUNC_skc_to_mptcp_sock___skc_to_mptcp_sock = 196,
};

static __always_inline bool can_set_retval(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id___set_retval, BPF_FUNC_set_retval___set_retval);
}

/* False also where the kernel was built without MPTCP: it has the helper and lacks the type. */
static __always_inline bool can_find_mptcp_socket(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id___skc_to_mptcp_sock,
					  BPF_FUNC_skc_to_mptcp_sock___skc_to_mptcp_sock) &&
	       bpf_core_type_exists(struct mptcp_sock);
}
