// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* connect.bpf.c with a fault: it knows no cluster with endpoints, and refuses connections to them. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "../../bpf/maps/tables.h"

#define CLUSTER_ENDPOINTS 77
#include "../../bpf/connect.bpf.c"
