/**
 * libbpf and a few libc calls (native/*.c), loaded from memory: no writable or executable /tmp is needed, and no file
 * remains. Every function gives -errno on failure.
 */
import { asset } from "../runtime/assets.ts";
import { cString, ffi } from "../runtime/ffi.ts";
import type { Functions } from "../runtime/native-types.ts";

const TABLE = {
  kmesh_open: ["i32", "buffer", "i32", "i32"],
  kmesh_close: ["i32", "i32"],
  kmesh_dup: ["i32", "i32"],
  kmesh_write: ["i64", "i32", "buffer", "u64"],
  kmesh_truncate: ["i32", "i32", "i64"],
  kmesh_flock: ["i32", "i32"],
  kmesh_mmap: ["i32", "i32", "u64", "buffer"],
  kmesh_munmap: ["i32", "buffer", "u64"],
  kmesh_mount: ["i32", "buffer", "buffer", "buffer", "u64"],
  kmesh_unmount: ["i32", "buffer"],
  kmesh_unshare_netns: ["i32"],
  kmesh_loopback_up: ["i32"],
  kmesh_netns_cookie: ["i32", "buffer"],
  kmesh_walk_map: ["i32", "i32", "i32"],
  kmesh_ask: ["i32", "i32", "u32", "u32", "buffer"],
  kmesh_send_datagram: ["i32", "buffer", "u32", "buffer", "u64"],
  kmesh_prctl: ["i32", "i32", "u64"],
  kmesh_membarrier: ["i32"],
  kmesh_monotonic: ["i32", "buffer"],
  kmesh_open_cgroup: ["i32", "i32", "u64"],
  kmesh_exec: ["i32", "buffer", "buffer", "i32", "buffer", "i32"],
  kmesh_spawn_orphan: ["i32", "buffer", "buffer", "i32", "buffer", "i32"],
  kmesh_object_open: ["i32", "buffer", "u64", "buffer", "buffer"],
  kmesh_map_create: ["i32", "i32", "buffer", "u32", "u32", "u32", "u32", "i32"],
  kmesh_map_uncharged: ["i32", "u64", "u64", "buffer"],
  kmesh_place_inner: ["i32", "buffer", "u32"],
  kmesh_test_run: ["i32", "i32", "buffer", "u32", "i32", "buffer", "buffer"],
  kmesh_sockets_open: ["i32", "i32", "i32", "u32", "i32"],
  kmesh_sockets_read: ["i32", "i32", "buffer", "u32", "u32", "buffer"],
  kmesh_socket_destroy: ["i32", "buffer"],
  kmesh_add: ["void", "buffer", "i64"],
  kmesh_program_maps: ["i32", "i32", "buffer", "u32"],
  kmesh_probe_start: ["i32", "i32", "buffer"],
  kmesh_probe_order: ["i32", "i32", "buffer", "buffer"],
  kmesh_probe_end: ["void", "i32", "i32"],
  kmesh_listen_loopback: ["i32", "i32", "buffer"],
  kmesh_iterator_attach: ["i32", "i32", "i32"],
  kmesh_iterator_begin: ["i32", "i32", "i32"],
  kmesh_iterator_go_on: ["i32", "i32"],
  kmesh_ring_open: ["i32", "i32", "u32", "buffer"],
  kmesh_ring_read: ["i32", "u64", "buffer", "u32", "u32"],
  kmesh_ring_close: ["void", "u64"],
  kmesh_tcx_attach: ["i32", "i32", "i32"],
  kmesh_clsact_attach: ["i32", "i32", "i32", "u32", "u32"],
  kmesh_clsact_program: ["i32", "i32", "u32", "u32"],
  kmesh_clsact_detach: ["i32", "i32", "u32", "u32"],
  kmesh_test_packet: ["i32", "i32", "buffer", "u32", "buffer", "u32", "buffer", "buffer", "buffer"],
  kmesh_interfaces: ["i32", "buffer", "u32"],
  kmesh_interfaces_watch: ["i32"],
  kmesh_interfaces_changed: ["i32", "i32"],
  kmesh_log_take: ["u32", "buffer", "u32"],

  bpf_map_lookup_elem: ["i32", "i32", "buffer", "buffer"],
  bpf_map_update_elem: ["i32", "i32", "buffer", "buffer", "u64"],
  bpf_map_delete_elem: ["i32", "i32", "buffer"],
  bpf_map_get_next_key: ["i32", "i32", "buffer", "buffer"],
  bpf_map_lookup_batch: ["i32", "i32", "buffer", "buffer", "buffer", "buffer", "buffer", "buffer"],
  bpf_map_update_batch: ["i32", "i32", "buffer", "buffer", "buffer", "buffer"],
  bpf_prog_load: ["i32", "i32", "buffer", "buffer", "buffer", "u64", "buffer"],
  libbpf_probe_bpf_helper: ["i32", "i32", "i32", "buffer"],
  bpf_map_get_fd_by_id: ["i32", "u32"],
  bpf_prog_get_fd_by_id: ["i32", "u32"],
  bpf_link_get_fd_by_id: ["i32", "u32"],
  bpf_obj_get_info_by_fd: ["i32", "i32", "buffer", "buffer"],
  bpf_prog_bind_map: ["i32", "i32", "i32", "buffer"],
  bpf_obj_pin: ["i32", "i32", "buffer"],
  bpf_obj_get: ["i32", "buffer"],
  bpf_link_create: ["i32", "i32", "i32", "i32", "buffer"],
  bpf_link_update: ["i32", "i32", "i32", "buffer"],
  bpf_link_detach: ["i32", "i32"],

  bpf_object__close: ["void", "u64"],
  bpf_object__load: ["i32", "u64"],
  bpf_object__next_map: ["u64", "u64", "u64"],
  bpf_object__find_map_by_name: ["u64", "u64", "buffer"],
  bpf_map__name: ["u64", "u64"],
  bpf_map__type: ["i32", "u64"],
  bpf_map__key_size: ["u32", "u64"],
  bpf_map__value_size: ["u32", "u64"],
  bpf_map__map_flags: ["u32", "u64"],
  bpf_map__fd: ["i32", "u64"],
  bpf_map__reuse_fd: ["i32", "u64", "i32"],
  bpf_object__next_program: ["u64", "u64", "u64"],
  bpf_object__find_program_by_name: ["u64", "u64", "buffer"],
  bpf_program__name: ["u64", "u64"],
  bpf_program__fd: ["i32", "u64"],
  bpf_program__set_autoload: ["i32", "u64", "i32"],
} as const;

type Native = Functions<typeof TABLE>;

let loaded: Native | undefined;

/** The native functions, loaded at the first call: commands that need no kernel don't load them. */
export function native(): Native {
  loaded ??= load();
  return loaded;
}

function load(): Native {
  // libc gives real file descriptors; Deno's node:fs gives numbers of its own.
  const libc = ffi.open("libc.so.6", {
    memfd_create: ["i32", "buffer", "u32"],
    write: ["i64", "i32", "buffer", "u64"],
    close: ["i32", "i32"],
  });
  const cloexec = 1;
  const fd = libc.memfd_create(cString("libbpf.so"), cloexec);
  if (fd < 0)
    throw new Error("memfd_create failed, libbpf can't be loaded: is it forbidden by a seccomp filter?");
  try {
    let rest = asset("libbpf.so");
    while (rest.length > 0) {
      const written = Number(libc.write(fd, rest, BigInt(rest.length)));
      if (written <= 0) throw new Error("no memory for libbpf");
      rest = rest.subarray(written);
    }
    return ffi.open(`/proc/self/fd/${fd}`, TABLE);
  } finally {
    libc.close(fd);
  }
}

/** The end of libbpf's log since the last call; "" when it is empty. */
export function takeLog(): string {
  const bytes = new Uint8Array(new ArrayBuffer(32768));
  const length = native().kmesh_log_take(bytes, bytes.length);
  return new TextDecoder().decode(bytes.subarray(0, length)).trimEnd();
}
