#!/bin/sh
# Prepares a node for pods in VLANs: a bridge that knows VLANs, with the link to
# the trunk as a port that carries all of them. Pods become access ports of the
# bridge. Running it again changes nothing.
#
#   sh prepare-node.sh [BRIDGE [TRUNK-LINK]]
set -eu

bridge=${1:-vlanbr0}
trunk=${2:-trunk0}

if ! ip link show dev "$trunk" >/dev/null; then
	echo "prepare-node.sh: this node has no link $trunk" >&2
	exit 1
fi
if ! ip link show dev "$bridge" >/dev/null 2>&1; then
	ip link add "$bridge" type bridge vlan_filtering 1
fi
ip link set dev "$trunk" master "$bridge"
bridge vlan add dev "$trunk" vid 1-4094
ip link set dev "$trunk" up
ip link set dev "$bridge" up
