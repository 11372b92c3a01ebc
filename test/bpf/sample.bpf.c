// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the tests of src/kernel load: maps of the kinds that the data path uses, programs that count and refuse, and one
 * that no verifier accepts (left out unless asked for).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum sample_kind {
	SAMPLE_NONE = 0,
	SAMPLE_SOME = 7,
};

struct sample_part {
	__u32 first;
	__u32 second;
};

struct sample {
	__u64 count;
	struct sample_part parts[3];
	enum sample_kind kind;
	union {
		__u32 word;
		__u8 bytes[4];
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct sample);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 8);
	__type(key, __u32);
	/* clang-format off */
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
		__uint(max_entries, 1);
		__type(key, __u32);
		__type(value, __u64);
	});
	/* clang-format on */
} chunks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sample_part);
} sockets SEC(".maps");

/* Counts in element 0. */
SEC("cgroup/connect4")
int count_connect(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	struct sample *sample = bpf_map_lookup_elem(&counts, &zero);

	if (sample)
		__sync_fetch_and_add(&sample->count, 1);
	bpf_sk_storage_get(&sockets, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}

/* Refuses all. */
SEC("cgroup/connect4")
int refuse_connect(struct bpf_sock_addr *ctx)
{
	return 0;
}

/* Reads the first word of the first chunk. */
SEC("socket")
int read_chunk(struct __sk_buff *skb)
{
	__u32 zero = 0;
	void *chunk = bpf_map_lookup_elem(&chunks, &zero);
	__u64 *word = chunk ? bpf_map_lookup_elem(chunk, &zero) : 0;

	return word ? *word : -1;
}

SEC("socket")
int unverifiable(struct __sk_buff *skb)
{
	return *(volatile __u32 *)(long)skb->len;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
