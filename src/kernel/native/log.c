// SPDX-License-Identifier: Apache-2.0
/*
 * libbpf prints to stderr on its own. Here the end of what it says is kept, so that an error's message can carry it
 * (the verifier's verdict is in its last lines). In C because a va_list can't be handed to another language portably.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bpf/libbpf.h>

#define API __attribute__((visibility("default")))

static char tail[32768];
static unsigned int used;

static void append(const char *text, unsigned int length)
{
	if (length > sizeof(tail)) {
		text += length - sizeof(tail);
		length = sizeof(tail);
	}
	if (used + length > sizeof(tail)) {
		unsigned int drop = used + length - sizeof(tail);

		memmove(tail, tail + drop, used - drop);
		used -= drop;
	}
	memcpy(tail + used, text, length);
	used += length;
}

static int keep(enum libbpf_print_level level, const char *format, va_list arguments)
{
	char *text = NULL;
	int length;

	if (level != LIBBPF_WARN)
		return 0;
	length = vasprintf(&text, format, arguments);
	if (length > 0)
		append(text, length);
	if (length >= 0)
		free(text);
	return length;
}

__attribute__((constructor)) static void capture(void)
{
	libbpf_set_print(keep);
}

/* Moves what was said since the last call into `text` (32 KiB are always enough); gives the number of bytes. */
API unsigned int kmesh_log_take(char *text, unsigned int size)
{
	unsigned int length = used < size ? used : size;

	memcpy(text, tail + used - length, length);
	used = 0;
	return length;
}
