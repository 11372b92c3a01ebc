# Sourced by every build script: where things are, and how they talk. No side effects but variables.
# shellcheck shell=bash disable=SC2034

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kmesh
BIN=$ROOT/node_modules/.bin
BUN=$BIN/bun

# What is built for: x64 or arm64, as Node calls them. TARGET names the one that is not this machine's.
case $(uname -m) in
x86_64) HOST=x64 ;;
aarch64) HOST=arm64 ;;
*) HOST=$(uname -m) ;;
esac
TARGET=${TARGET:-$HOST}
case $TARGET in
x64) TRIPLE=x86_64-linux-gnu DEBIAN_ARCH=amd64 BUN_PACKAGE=@oven/bun-linux-x64 ;;
arm64) TRIPLE=aarch64-linux-gnu DEBIAN_ARCH=arm64 BUN_PACKAGE=@oven/bun-linux-aarch64 ;;
esac
if [ "$TARGET" = "$HOST" ]; then
  OUT=$ROOT/dist INCLUDE=/usr/include/${TRIPLE-} OBJCOPY=objcopy
  CC=(clang)
else
  # Debian's cross toolchain has the other architecture's libc there, its C headers and linker included.
  OUT=$ROOT/dist/$TARGET INCLUDE=/usr/${TRIPLE-}/include OBJCOPY=${TRIPLE-}-objcopy
  CC=(clang "--target=${TRIPLE-}" -isystem "$INCLUDE")
fi

# libbpf's archive is named by what it is made of, so that a change of the recipe never meets an old result.
LIBBPF_VERSION=1.5.0
LIBBPF=$CACHE/libbpf-$LIBBPF_VERSION-$TARGET-$(sha256sum "$ROOT/build/libbpf" | cut -c1-12)

# Bun as the runtime of the other architecture's single file; build/runtime fetches it.
BUN_VERSION=$(sed -n 's/^ *"bun": "\([0-9.]*\)",*$/\1/p' "$ROOT/package.json")
OTHER_BUN=$CACHE/bun-$BUN_VERSION-$TARGET/bun

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$@"
  exit 1
}
