# SPDX-License-Identifier: Apache-2.0
# Two hosts on one machine: network namespaces with a wire between them, each with a host name of its own, are two hosts
# to Open MPI. To be sourced by a script that needs them; what they leave behind goes when that script ends.
#   make_hosts [RATE]          of a wire that carries RATE a second each way (as tc writes it: 1gbit); 77 and why, where
#                              this machine does not allow it
#   mpirun_across N COMMAND... with N ranks on each; mpirun's further options in the array mpi_options
# shellcheck shell=bash
hosts_work=$(mktemp -d)
node0=pkm$$a node1=pkm$$b
mpi_options=()

remove_hosts() {
  for node in $node0 $node1; do
    ip netns pids "$node" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns del "$node" 2>/dev/null || true
  done
  ip link del "v0$$" 2>/dev/null || true  # in neither yet
}
trap 'remove_hosts; rm -rf "$hosts_work"' EXIT
trap 'exit 143' TERM INT  # at once: mpirun_across waits for a child in the background

make_hosts() {
  remove_hosts
  if ! { ip netns add "$node0" && ip netns add "$node1" && ip link add "v0$$" type veth peer name "v1$$" &&
    unshare --uts true; } 2>"$hosts_work/why"; then
    echo "SKIPPED: network namespaces are not allowed here: $(head -1 "$hosts_work/why")"
    exit 77
  fi
  ip link set "v0$$" netns "$node0"
  ip link set "v1$$" netns "$node1"
  local i=1 node
  for node in $node0 $node1; do
    ip netns exec "$node" ip addr add "10.77.0.$i/24" dev "v$((i - 1))$$"
    ip netns exec "$node" ip link set "v$((i - 1))$$" up
    ip netns exec "$node" ip link set lo up
    [ -z "${1-}" ] || ip netns exec "$node" tc qdisc add dev "v$((i - 1))$$" root tbf rate "$1" burst 1mb latency 100ms
    i=$((i + 1))
  done
  # Open MPI starts its daemon on the other host through this: $1 is the host, the rest the command.
  cat >"$hosts_work/rsh" <<RSH
#!/bin/sh
case "\$1" in 10.77.0.1) node=$node0 ;; *) node=$node1 ;; esac
shift
exec ip netns exec \$node unshare --uts sh -c "hostname \$node; \$*"
RSH
  chmod +x "$hosts_work/rsh"
}

mpirun_across() {
  local each=$1
  shift
  # In the background, for a shell does not hear a signal while a child has the foreground, and would leave it behind.
  ip netns exec "$node0" unshare --uts sh -c "hostname $node0; exec \"\$@\"" sh \
    mpirun -n $((2 * each)) --mca plm_rsh_agent "$hosts_work/rsh" -H "10.77.0.1:$each,10.77.0.2:$each" \
    --mca oob_tcp_if_include 10.77.0.0/24 --mca btl tcp,self,vader --mca pml ob1 \
    --mca btl_tcp_if_include 10.77.0.0/24 "${mpi_options[@]}" "$@" &
  wait $!
}
