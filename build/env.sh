# Sourced by every build script: where things are, and how they talk. No side effects but variables.
# shellcheck shell=bash disable=SC2034

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kmesh
BIN=$ROOT/node_modules/.bin
BUN=$BIN/bun

# libbpf's archive is named by what it is made of, so that a change of the recipe never meets an old result.
LIBBPF_VERSION=1.5.0
LIBBPF=$CACHE/libbpf-$LIBBPF_VERSION-$(uname -m)-$(sha256sum "$ROOT/build/libbpf" | cut -c1-12)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$@"
  exit 1
}
