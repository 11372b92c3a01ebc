/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What connect4/6 read of a socket beyond struct bpf_sock. The cast helpers give typed pointers, which are read by plain
 * loads at offsets that CO-RE relocates.
 *
 * An MPTCP socket is connected by its first subflow, a TCP socket of the kernel's: connect4/6 see the subflow,
 * getpeername4/6 and sock_release see the MPTCP socket. State hence belongs to the MPTCP socket wherever the kernel can
 * find it (5.19); before that it stays with the subflow, so getpeername() shows the endpoint and nothing is counted.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"

/* A socket of the kernel itself (NFS, CIFS, an MPTCP subflow) ends without sock_release: it could never be uncounted. */
static __always_inline bool is_kernel_socket(const struct sock *sk)
{
	return BPF_CORE_READ_BITFIELD(sk, sk_kern_sock);
}

/*
 * The MPTCP socket that `tcp`, which is `sk`, is a subflow of, or NULL. The kernel's own mark of a subflow lies where nothing
 * else was read yet; that it is a kernel socket is known for less.
 */
static __always_inline struct mptcp_sock *mptcp_of(struct bpf_sock *sk, const struct tcp_sock *tcp)
{
	if (!can_find_mptcp_socket() || !is_kernel_socket((const struct sock *)tcp))
		return NULL;
	return bpf_skc_to_mptcp_sock(sk);
}

/*
 * Whether the kernel adds a path to an MPTCP connection that is made already. The path leads to the endpoint's own
 * address, and was decided about when the first subflow connected. `tcp` is a subflow of `mptcp`, which may be NULL.
 */
static __always_inline bool is_later_subflow(const struct mptcp_sock *mptcp, const struct tcp_sock *tcp)
{
	return mptcp && (const void *)mptcp->first != (const void *)tcp;
}

/* The TCP socket that `sk`, the socket of connect4/6 for TCP, is. Without a helper call where the kernel allows it. */
static __always_inline const struct tcp_sock *tcp_of(struct bpf_sock *sk)
{
	if (bpf_ksym_exists(bpf_rdonly_cast))
		return bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct tcp_sock));
	return bpf_skc_to_tcp_sock(sk);
}

static __always_inline bool adds_path(struct bpf_sock *sk)
{
	const struct tcp_sock *tcp = sk ? tcp_of(sk) : NULL;

	return tcp && is_later_subflow(mptcp_of(sk, tcp), tcp);
}

/*
 * False when no program ever gave this socket storage: a load instead of a look-up, for all that is left alone. True where
 * the kernel can't tell so cheaply.
 */
static __always_inline bool may_have_storage(const void *sk)
{
	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		const struct sock *full = bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct sock));

		return full->sk_bpf_storage;
	}
	return true;
}

/* The same for a socket that connects: a subflow's state lies at its MPTCP socket. */
static __always_inline bool may_be_known(struct bpf_sock *sk)
{
	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		const struct sock *full = bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct sock));

		return full->sk_bpf_storage || is_kernel_socket(full);
	}
	return true;
}

/* An IPv6 socket with V6ONLY can't reach a v4-mapped address. */
static __always_inline bool is_v6_only(struct bpf_sock *sk)
{
	struct sock *full = (struct sock *)bpf_skc_to_tcp_sock(sk);
	struct sock_common *common = (struct sock_common *)full;

	return full && BPF_CORE_READ_BITFIELD(common, skc_ipv6only);
}
