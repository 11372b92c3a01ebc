/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

#include <linux/types.h>

/* Network byte order; IPv4 as ::ffff:a.b.c.d. */
struct address {
	__be32 word[4];
};
