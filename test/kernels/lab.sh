# shellcheck shell=bash
# What the scripts of this folder share; to be sourced. A small mesh on loopback with the demo's control plane, a cgroup, pins
# and folders of its own: `set_up` makes it, and it goes when the script ends. KMESH names the single file,
# KMESH_LAB_STATE a state folder that stays.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kmesh=${KMESH:-$here/../../dist/kmesh}
client=$here/../interop/client.py
outcomes=$here/../datapath/outcomes.py
export PATH=$PATH:/usr/sbin:/sbin
began=$SECONDS

folder=$(mktemp -d)
state=${KMESH_LAB_STATE:-$folder/state}
cgroup=$(awk '{ for (i = 7; i <= NF; i++) if ($i == "-" && $(i + 1) == "cgroup2") { print $5; exit } }' /proc/self/mountinfo)/kmesh-lab-$$
bpffs=/sys/fs/bpf/kmesh-lab-$$
folders=(--bpffs="$bpffs" --state-dir="$state" --run-dir="$folder/run")
children=()
agent=

say() { printf '%4d s  %s\n' $((SECONDS - began)) "$*"; }
fail() {
	say "FAILED: $*"
	for log in "$folder"/*.log; do
		[[ -s $log ]] && printf -- '--- %s\n' "${log##*/}" && tail -n 40 "$log"
	done
	"$kmesh" status "${folders[@]}" 2>&1 | head -n 60 || true
	exit 1
}
cleanup() {
	[[ -z $agent ]] || kill -KILL "$agent" 2>/dev/null || true
	[[ ! -e $bpffs ]] || "$kmesh" down --yes "${folders[@]}" >/dev/null 2>&1 || true
	for child in "${children[@]}"; do kill -KILL "$child" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rmdir "$cgroup" 2>/dev/null || true
	rm -rf "$folder"
}
trap cleanup EXIT

# eventually SECONDS COMMAND... KMESH_LAB_PATIENCE multiplies the seconds.
eventually() {
	local until=$((SECONDS + $1 * ${KMESH_LAB_PATIENCE:-1}))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < until)) || return 1
		sleep 0.3
	done
}

# The parts live as long as their standard input is open.
mkfifo "$folder/hold"
exec {hold}<>"$folder/hold"

# An app: joins the cgroup, then runs.
app() { (echo "$BASHPID" >"$cgroup/cgroup.procs" && exec "$@"); }

# by_name SERVER COMMAND...: an enrolled app whose name server is SERVER.
by_name() {
	printf 'nameserver %s\noptions timeout:5 attempts:2\n' "$1" >"$folder/resolv.conf"
	shift
	# shellcheck disable=SC2016
	app unshare --mount sh -c 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"' "$folder/resolv.conf" "$@"
}

# connect ADDRESS PORT COUNT [MORE-JSON]: prints what client.py counted. One process does it for all: under emulation
# its start takes longer than its connections.
connect() {
	local line
	echo "{\"address\":\"$1\",\"port\":$2,\"count\":$3${4:-}}" >&"$ask"
	read -r -t 120 -u "$answer" line && echo "$line"
}

# failures HOST ADDRESS WAY,WAY...: the failed connections that the kernel counts for the service, when its app's
# connections go these ways of outcomes.py.
failures() {
	local before
	before=$(failed "$1")
	app python3 "$outcomes" "$3" "$2" 80 8080 172.31.1.1:8080 </dev/null >>"$folder/outcomes.log" 2>&1 || echo "it ends badly"
	echo $(($(failed "$1") - before))
}
failed() {
	status | grep -oE "\"service\":\"$1:80\"[^{]*\{[^}]*\},\"failed\":[0-9]+" | grep -oE '[0-9]+$'
}

# outside: how a connection to the upstream goes that comes from an address of no interface.
outside() {
	python3 -c '
import socket
one = socket.socket()
one.settimeout(10)
one.bind(("10.97.9.2", 0))
try: print("accepted" if one.connect(("172.31.1.1", 8080)) is None else "")
except OSError as error: print(type(error).__name__)'
}

# expect WHAT PATTERN TEXT
expect() {
	[[ $3 =~ $2 ]] || fail "$1: expected $2, found $3"
	say "$1"
}

# Starts an agent; `start_agent` waits until its first push is live, too.
run_agent() {
	"$kmesh" run --istiod=127.0.0.1:15910 --plaintext --namespace=demo --ip=10.99.255.1 --cgroup="$cgroup" \
		"${folders[@]}" >>"$folder/agent.log" 2>&1 &
	agent=$!
	children+=("$agent")
}
start_agent() {
	run_agent
	eventually 60 live || fail "the tables are not live after 60 s"
}
live() { status | grep -qE "\"pid\": *$agent,.*\"applies\": *[1-9]"; }
# By the agent's socket, not by the command: that takes longer to start than to answer.
status() { curl -sf --max-time 20 --unix-socket "$folder/run/admin.sock" http://agent/status; }
number() { status | grep -oE "\"$1\": *[0-9]+" | head -n 1 | grep -oE '[0-9]+$'; }

# Everything but the control plane and the agent.
set_up() {
	mkdir "$cgroup"
	mkdir -p "$state" "$folder/run"
	mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
	ip link set lo up
	for address in 172.31.1.1/32 172.31.1.2/32; do ip addr replace "$address" dev lo; done
	ip -6 addr replace fd99:31::1/128 dev lo nodad
	# Apps may bind to these, though no interface has them: to kmesh they are peers from outside.
	ip route replace local 10.97.9.0/24 dev lo
	# What is sent there comes back to nobody.
	ip route replace 172.31.9.0/24 dev lo

	cat >"$folder/mesh.yaml" <<'YAML'
services:
  - host: shop.demo
    addresses: [10.99.0.1, "fd99::1"]
    port: 80
    balance: round-robin
    endpoints:
      - { address: 172.31.1.1, port: 8080, subset: v1 }
      - { address: 172.31.1.2, port: 8080, subset: v2 }
    split: { v1: 80, v2: 20 }
  - host: block.demo
    addresses: [10.99.16.0/20]
    port: 81
    endpoints: [{ address: 172.31.1.1, port: 8080 }]
  - host: six.demo
    addresses: ["fd99::6"]
    port: 80
    endpoints: [{ address: "fd99:31::1", port: 8080 }]
  - host: half.demo
    addresses: [10.99.0.7]
    port: 80
    balance: round-robin
    endpoints: [{ address: 172.31.1.1, port: 8080 }, { address: 172.31.1.1, port: 9 }]
  - host: closed.demo
    addresses: [10.99.0.8]
    port: 80
    endpoints: [{ address: 172.31.1.1, port: 9 }]
  - host: silent.demo
    addresses: [10.99.0.10]
    port: 80
    endpoints: [{ address: 172.31.9.9, port: 80 }]
  - host: nobody.demo
    addresses: [10.99.0.9]
    port: 80
    endpoints: []
inbound:
  - { port: 8080, mtls: disable, deny: [10.97.9.0/24] }
YAML
	python3 "$here/servers.py" a=172.31.1.1:8080 b=172.31.1.2:8080 'c=[fd99:31::1]:8080' <&"$hold" >"$folder/servers.log" 2>&1 &
	children+=($!)
	mkfifo "$folder/ask" "$folder/answer"
	app python3 "$client" '{"mode":"asked"}' <"$folder/ask" >"$folder/answer" &
	children+=($!)
	exec {ask}>"$folder/ask" {answer}<"$folder/answer"
	eventually 60 curl -s --noproxy '*' --max-time 5 http://172.31.1.2:8080/ || fail "the upstream does not answer"
}

start_control_plane() {
	"$kmesh" demo-part control-plane "{\"file\":\"$folder/mesh.yaml\",\"port\":15910}" <&"$hold" >"$folder/control-plane.log" 2>&1 &
	children+=($!)
}
