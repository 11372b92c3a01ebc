// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* connect.bpf.c with other instructions, which do the same as long as the tables are sound. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "../../bpf/maps/verdict.h"

#define REASON_INTERNAL REASON_NO_ENDPOINT
#include "../../bpf/connect.bpf.c"
