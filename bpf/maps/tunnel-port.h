/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Endpoints that `kmesh tunnel` reaches for the apps have the address 127.a.b.c:TUNNEL_PORT (tunnel.h). */
#include <linux/types.h>
#include <bpf/bpf_endian.h>

#define TUNNEL_PORT 15001
/*
 * The smallest a.b.c. A socket that is bound to an IPv4 address and connects to :: reaches 127.0.0.1, so that address must
 * not be a target.
 */
#define TUNNEL_FIRST_NUMBER 2
