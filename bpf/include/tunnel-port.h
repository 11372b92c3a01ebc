/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Where endpoints are that `kmesh tunnel` reaches for the apps: 127.a.b.c:TUNNEL_PORT (tunnel.h). */
#include <linux/types.h>
#include <bpf/bpf_endian.h>

#define TUNNEL_PORT 15001
/*
 * The smallest a.b.c. Who connects to :: from a socket that is bound to an IPv4 address comes to 127.0.0.1, so that must
 * not be a target.
 */
#define TUNNEL_FIRST_NUMBER 2
