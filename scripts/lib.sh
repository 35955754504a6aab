# SPDX-License-Identifier: Apache-2.0
# What quickstart and test share: packages, the build, and an environment in which mpirun works anywhere. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs=$(nproc)

say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

build_packages=(g++ cmake ninja-build ccache pkg-config openmpi-bin libopenmpi-dev libopenblas-openmp-dev libdnnl-dev libprotobuf-dev
  protobuf-compiler libsentencepiece-dev libcli11-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libxxhash-dev zlib1g-dev
  libgtest-dev)

# need PACKAGE...: installs the Debian packages that are missing (as root, or through sudo).
need() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || die "these Debian packages are missing and there is no apt-get: ${missing[*]}"
  local root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "run this as root once, or install: apt-get install ${missing[*]}"
    root=(sudo)
  fi
  say "installing ${missing[*]}"
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# build PRESET [TARGET...]: configures and builds build/PRESET.
build() {
  local preset=$1
  shift
  say "building build/$preset"
  local launcher=()
  command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
  cmake --preset "$preset" "${launcher[@]}" >"/tmp/pkmesh-cmake-$preset.$$" 2>&1 || { cat "/tmp/pkmesh-cmake-$preset.$$" >&2; exit 1; }
  rm -f "/tmp/pkmesh-cmake-$preset.$$"
  cmake --build "build/$preset" -j "$jobs" ${1:+--target "$@"}
}

# mpirun as root, with more ranks than cores, inside containers; Open MPI 4 and 5.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe OMPI_MCA_mpi_yield_when_idle=1
# Ranks of a host read each other's memory, one copy instead of two, where the kernel lets them; containers often do not.
may_read_each_other() {
  local traced=/proc/sys/kernel/yama/ptrace_scope
  grep -q '^Seccomp:[[:space:]]*0$' /proc/self/status && { [ ! -e "$traced" ] || [ "$(cat "$traced")" = 0 ]; }
}
may_read_each_other || export OMPI_MCA_btl_vader_single_copy_mechanism=none

# Worktrees and clones share what the compiler cache knows.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
