/** Maps in keep/ never change their layouts: compares bpf/maps/keep.h with the released layouts. */
import { expect, test } from "bun:test";
import { keptLayouts } from "./keep.ts";

const NEVER =
  "The maps of keep/ are used by every version of kmesh at once: programs of an older one go on writing records of this " +
  "shape while a newer one reads them, and a rollback goes back to it. So what stands in this table is never altered or " +
  "removed. A new field goes where `reserved` is, and zero in it means what was so before; what needs more room " +
  "goes into another map beside these.";
const ADDED =
  "keep.h has what this table lacks. If it is a new map, its record, or a field in the place of `reserved`, add these " +
  "lines. If it took the place of something else, don't.";

/** Maps; then each record's size and fields (offset and size in bytes); then the meanings of numbers. */
const TABLE = `
map sockets: sk-storage, key 4, value 96, 0 at most, flags 1
map endpoints: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 32, 256 at most, flags 5120
map endpoint_loads: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 32, 256 at most, flags 5120
map cluster_loads: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 64, 256 at most, flags 5120
map service_counts: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 192, 256 at most, flags 5120
map agents: hash, key 4, value 8, 64 at most, flags 0
map enrolled: hash, key 8, value 8, 1024 at most, flags 0
map units: hash, key 128, value 8, 4096 at most, flags 1
map enrolment: array, key 4, value 64, 1 at most, flags 1024
map verdicts: array, key 4, value 8, 16384 at most, flags 1024
map name_lines: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 64, 256 at most, flags 5120
map cluster_names: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 8, 256 at most, flags 5120
map service_names: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 8, 256 at most, flags 5120
socket_state: 96 bytes
socket_state.version: 2 at 0
socket_state.flags: 2 at 2
socket_state.service: 4 at 4
socket_state.cluster: 4 at 8
socket_state.endpoint: 4 at 12
socket_state.asked: 16 at 16
address: 16 bytes
address.word: 4 x 4 at 0
socket_state.asked_port: 2 at 32
socket_state.sequence: 4 at 36
socket_state.since_ns: 8 at 40
unit_name: 128 bytes
unit_name.byte: 1 x 128 at 0
enrolment: 64 bytes
enrolment.epoch: 8 at 0
enrolment.root: 8 at 8
endpoint: 32 bytes
endpoint.address: 16 at 0
endpoint.port: 2 at 16
endpoint.is_v4: 1 at 18
endpoint.used: 4 at 20
name_ref: 8 bytes
name_ref.first_line: 4 at 0
name_ref.length: 4 at 4
name_line: 64 bytes
name_line.byte: 1 x 64 at 0
endpoint_load: 32 bytes
endpoint_load.live: 8 at 0
endpoint_load.failures: 4 at 8
endpoint_load.ejections: 4 at 12
endpoint_load.ejected_until_ns: 8 at 16
endpoint_load.failed: 8 at 24
cluster_load: 64 bytes
cluster_load.turn: 8 at 0
cluster_load.live: 8 at 8
cluster_load.turn_v6: 8 at 16
cluster_load.ejected_until_ns: 8 at 24
cluster_load.ejected: 4 at 32
cluster_load.ejections: 8 at 40
service_counters: 192 bytes
service_counters.redirected: 8 at 0
service_counters.passed: 8 at 8
service_counters.would_redirect: 8 at 16
service_counters.would_refuse: 8 at 24
service_counters.refused: 8 x 12 at 32
service_counters.failed: 8 at 128
SOCKET_REDIRECTED = 1
SOCKET_COUNTED = 2
SOCKET_PROBE = 4
SOCKET_MPTCP = 8
REASON_NONE = 0
REASON_NO_ENDPOINT = 1
REASON_NO_FAMILY = 2
REASON_MISSING_CLUSTER = 3
REASON_TLS_REQUIRED = 4
REASON_POLICY = 5
REASON_NOT_IN_REGISTRY = 6
REASON_MAX_CONNECTIONS = 7
REASON_UNDECIDABLE = 8
REASON_INTERNAL = 9
REASON_COUNT = 12
socket_state.source: 8 at 48
socket_state.flushed_sent: 8 at 56
socket_state.flushed_received: 8 at 64
socket_state.flushed_retransmits: 4 at 72
socket_state.flow: 4 at 76
socket_state.pid: 4 at 80
map traffic: array, key 4, value 64, 1 at most, flags 1024
traffic: 64 bytes
traffic.flags: 8 at 0
traffic.unlogged: 8 at 8
traffic.interval_ns: 8 at 16
traffic.flushed_ns: 8 at 24
traffic.flush_ns: 8 at 32
traffic.unnamed: 8 at 40
map served_ports: array, key 4, value 8, 1024 at most, flags 1024
map flow_rows: hash, key 32, value 160, 65536 at most, flags 1
flow_key: 32 bytes
flow_key.source: 8 at 0
flow_key.direction: 1 at 8
flow_key.protocol: 1 at 9
flow_key.port: 2 at 10
flow_key.service: 4 at 16
flow_key.cluster: 4 at 20
flow_key.endpoint: 4 at 24
flow_key.remote: 16 at 16
flow_row: 160 bytes
flow_row.version: 4 at 0
flow_row.opened: 8 at 8
flow_row.ends: 8 x 8 at 16
flow_row.sent: 8 at 80
flow_row.received: 8 at 88
flow_row.retransmits: 8 at 96
flow_row.failed_ns: 8 at 104
flow_row.duration_ns: 8 at 112
flow_row.rtt_us: 8 at 120
flow_row.rtts: 8 at 128
flow_row.used_ns: 8 at 136
map caller_rows: hash, key 32, value 160, 4096 at most, flags 1
map traffic_other: array, key 4, value 160, 4 at most, flags 0
map latency_rows: hash, key 16, value 384, 8192 at most, flags 1
latency_key: 16 bytes
latency_key.source: 8 at 0
latency_key.service: 4 at 8
latency_key.direction: 4 at 12
latency_row: 384 bytes
latency_row.rtt: 8 x 24 at 0
latency_row.duration: 8 x 24 at 192
map latency_blank: array, key 4, value 384, 1 at most, flags 0
map traffic_log: ringbuf, key 0, value 0, 1048576 at most, flags 0
map source_cache: array, key 4, value 8, 16384 at most, flags 1024
map source_names: hash, key 8, value 128, 4096 at most, flags 1
map flow_labels: hash, key 8, value 344, 65536 at most, flags 1
label_key: 8 bytes
label_key.kind: 4 at 0
label_key.id: 4 at 4
label: 344 bytes
label.byte: 1 x 344 at 0
map retired_rows: hash, key 24, value 504, 8192 at most, flags 1
retired_key: 24 bytes
retired_key.source: 8 at 0
retired_key.label: 8 at 8
retired_key.direction: 1 at 16
retired_row: 504 bytes
retired_row.sum: 160 at 0
retired_row.label: 344 at 160
map retirement: array, key 4, value 568, 1 at most, flags 1024
retirement: 568 bytes
retirement.pending: 8 at 0
retirement.from: 32 at 8
retirement.to: 24 at 40
retirement.sum: 504 at 64
FLOW_NONE = 0
FLOW_BEGUN = 1
FLOW_OPENED = 2
FLOW_OTHER = 3
flow_record: 112 bytes
flow_record.at_ns: 8 at 0
flow_record.since_ns: 8 at 8
flow_record.sent: 8 at 16
flow_record.received: 8 at 24
flow_record.key: 32 at 32
flow_record.asked: 16 at 64
flow_record.asked_port: 2 at 80
flow_record.end: 1 at 82
flow_record.is_live: 1 at 83
flow_record.pid: 4 at 84
flow_record.retransmits: 4 at 88
flow_record.rtt_us: 4 at 92
map recent: array, key 4, value 128, 64 at most, flags 1024
recent: 128 bytes
recent.number: 8 at 0
recent.at_ns: 8 at 8
recent.source: 8 at 16
recent.asked: 16 at 24
recent.endpoint: 16 at 40
recent.asked_port: 2 at 56
recent.endpoint_port: 2 at 58
recent.kind: 1 at 60
recent.reason: 1 at 61
recent.service: 4 at 64
recent.pid: 4 at 68
recent.command: 1 x 16 at 72
map recent_number: array, key 4, value 8, 1 at most, flags 0
RECENT_REFUSED = 1
RECENT_FAILED = 2
LABEL_SERVICE = 1
LABEL_ENDPOINT = 2
TRAFFIC_COUNT = 1
TRAFFIC_SERVED = 2
TRAFFIC_LOG = 4
FLOW_OUT = 1
FLOW_IN = 2
FLOW_REFUSED = 3
FLOW_PASSED = 4
FLOW_CLOSED = 0
FLOW_CONNECT_REFUSED = 1
FLOW_CONNECT_TIMED_OUT = 2
FLOW_UNREACHABLE = 3
FLOW_RESET = 4
FLOW_ABORTED = 5
FLOW_REUSED = 6
FLOW_ENDS = 8
OTHER_OUT = 0
OTHER_IN = 1
OTHER_BLANK = 2
OTHER_COUNT = 4
REASON_TUNNEL_ENTRY = 10
REASON_OTHER_NETNS = 11
map tunnel_targets: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 64, 256 at most, flags 5120
map transports: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 8, 256 at most, flags 5120
map transport_lines: array-of-maps, key 4, value 4, 20 at most, flags 0, of array, key 4, value 64, 256 at most, flags 5120
tunnel_target: 64 bytes
tunnel_target.address: 16 at 0
tunnel_target.port: 2 at 16
tunnel_target.transport: 4 at 20
tunnel_target.cluster: 4 at 24
tunnel_target.service: 4 at 28
map callers: hash, key 20, value 48, 65536 at most, flags 1
caller_key: 20 bytes
caller_key.address: 16 at 0
caller_key.port: 2 at 16
caller_key.app_port: 2 at 18
caller: 48 bytes
caller.address: 16 at 0
caller.port: 2 at 16
caller.pid: 4 at 20
caller.start_ticks: 8 at 24
socket_state.progress: 48 at 40
flow_progress: 48 bytes
flow_progress.since_ns: 8 at 0
flow_progress.source: 8 at 8
flow_progress.sent: 8 at 16
flow_progress.received: 8 at 24
flow_progress.retransmits: 4 at 32
flow_progress.flow: 4 at 36
flow_progress.pid: 4 at 40
flow_row.retiring: 4 at 4
map accepted: sk-storage, key 4, value 104, 0 at most, flags 1
accepted_flow: 104 bytes
accepted_flow.progress: 48 at 0
accepted_flow.remote: 16 at 48
accepted_flow.port: 2 at 64
accepted_flow.version: 4 at 68
FLOW_ENDED = 4
TRAFFIC_ACCEPTED = 8
map carried: hash, key 20, value 56, 65536 at most, flags 1
carried: 56 bytes
carried.remote: 16 at 0
carried.port: 2 at 16
carried.app_port: 2 at 18
carried.pid: 4 at 20
carried.start_ticks: 8 at 24
carried.until_ns: 8 at 32
map peers: hash, key 16, value 288, 4096 at most, flags 1
peer: 288 bytes
peer.address: 16 at 0
peer.text: 1 x 256 at 32
map tunnel_sockets: sk-storage, key 4, value 8, 0 at most, flags 513
`.trim();

test("nothing that was released has changed", () => {
  const now = new Set(keptLayouts());
  expect(
    TABLE.split("\n").filter((line) => !now.has(line)),
    NEVER,
  ).toEqual([]);
});

test("all that there is stands in the table", () => {
  const frozen = new Set(TABLE.split("\n"));
  expect(
    keptLayouts().filter((line) => !frozen.has(line)),
    ADDED,
  ).toEqual([]);
});
