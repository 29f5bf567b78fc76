#!/usr/bin/env bash
# A daemon behind a home router that opens ports on request (UPnP, by miniupnpd), which appears only after the daemon: it has
# a port mapped of itself, tells the mapped address, and whoever is outside dials in by it, though nobody passes anything on.
# A router that was started anew, and has forgotten all, is asked again when an address is new.
set -euo pipefail
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "28: a gateway with UPnP"
# Namespaces that nobody else sees. The outside has addresses that miniupnpd takes for public: those of documentation it refuses.
mkdir -p /run/netns; mount -t tmpfs none /run/netns

# outside -- wan, gateway, lan -- home
for name in outside gateway home; do ip netns add $name; ip -n $name link set lo up; done
ip -n gateway link add wan type veth peer name eth0 netns outside
ip -n gateway link add lan type veth peer name eth0 netns home
address() { ip -n "$1" addr add "$3/24" dev "$2"; ip -n "$1" link set "$2" up; }
address outside eth0 5.0.0.10; address gateway wan 5.0.0.21
address gateway lan 10.0.1.1; address home eth0 10.0.1.2
ip -n home route add default via 10.0.1.1
inside() { ip netns exec "$@"; }
# The tables that miniupnpd knows.
rule() { inside gateway iptables-legacy -w "$@"; }
inside gateway sysctl -qw net.ipv4.ip_forward=1
for chain in INPUT FORWARD; do
  rule -A $chain -i wan -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
done
# The chains that miniupnpd fills; what they do not let in is dropped.
rule -t nat -N MINIUPNPD; rule -t nat -A PREROUTING -i wan -j MINIUPNPD
rule -t nat -N MINIUPNPD-POSTROUTING; rule -t nat -A POSTROUTING -o wan -j MINIUPNPD-POSTROUTING
rule -t mangle -N MINIUPNPD; rule -t mangle -A PREROUTING -i wan -j MINIUPNPD
rule -N MINIUPNPD; rule -A FORWARD -i wan -j MINIUPNPD
rule -t nat -A POSTROUTING -o wan -j MASQUERADE
for chain in INPUT FORWARD; do rule -A $chain -i wan -j DROP; done

cat >"$W/miniupnpd.conf" <<'C'
ext_ifname=wan
listening_ip=lan
port=5555
enable_natpmp=no
enable_upnp=yes
secure_mode=yes
system_uptime=yes
uuid=2e3a3b3c-7c8d-4d0e-9d2f-5d1f2a3b4c5d
allow 1024-65535 10.0.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
C
# gateway_start - the part of the gateway that opens ports, which has opened none yet.
gateway_start() {
  # By itself and not by a function: what is stopped later is to be miniupnpd.
  ip netns exec gateway miniupnpd -d -f "$W/miniupnpd.conf" -P "$W/miniupnpd.pid" >>"$W/miniupnpd.log" 2>&1 & gateway_pid=$!
  PIDS+=($gateway_pid)
  # A client of another make, so that it is the gateway that is met here.
  wait_for 20 "the gateway is found by multicast" inside home upnpc -m eth0 -s
  inside home upnpc -m eth0 -s | grep -q '5.0.0.21' || fail "the gateway does not say its outside address"
}
gateway_stop() {
  stop $gateway_pid
  for table in nat mangle filter; do rule -t $table -F MINIUPNPD; done
  rule -t nat -F MINIUPNPD-POSTROUTING
}

# daemon NAME LISTEN BOOTSTRAP READONLY [P2P...] - a daemon in its namespace, with UPnP as it is by default.
daemon() {
  local name=$1 listen=$2 bootstrap=$3 readonly=$4; shift 4
  shoal_config "$name" "$bootstrap" "$readonly"
  sed -i "s#^  listen: .*#  listen: [/ip4/$listen/tcp/4001, /ip4/$listen/udp/4001/quic-v1]#" "$W/$name/config.yaml"
  [ $# -eq 0 ] || printf '  %s\n' "$@" >>"$W/$name/config.yaml"
  (printf '#!/bin/sh\nexec ip netns exec %s %s "$@"\n' "$name" "$SHOAL" >"$W/$name/shoal"; chmod +x "$W/$name/shoal")
  SHOAL=$W/$name/shoal shoal_start "$name"
}
status() { "$SHOAL" status --json --config "$W/$1/config.yaml"; }
has() { status "$1" | jq -e "$2" >/dev/null; }
mapped() { inside home upnpc -m eth0 -l | grep -qE "$1 +[0-9]+->10.0.1.2:4001"; }

LOG_LEVEL=debug daemon home 0.0.0.0 "" ""
wait_for 30 "home finds no gateway" grep -q 'gateway of the local network.*GatewayNotFound' "$W/home/log"
gateway_start
for protocol in TCP UDP; do wait_for 60 "the $protocol port is mapped" mapped $protocol; done
say "mapped: $(inside home upnpc -m eth0 -l | grep -o '[TU][CD]P .*->10.0.1.2:4001' | tr -s ' ' | paste -sd, )"
wait_for 60 "home counts as reached" has home '.node.nat.reachability == "public"'
for address in /ip4/5.0.0.21/tcp/ /ip4/5.0.0.21/udp/; do
  grep -q "reached from outside address=$address" "$W/home/log" || fail "home does not tell $address"
done
image "$W/img" 1 --seed upnp --layers 4 --kib 1024
inside home skopeo copy -q --dest-tls-verify=false "oci:$W/img:1" "docker://$home_registry/library/app:1"

# Outside nobody knows of the home but the address at its gateway.
port=$(inside home upnpc -m eth0 -l | sed -nE 's/.*TCP +([0-9]+)->10.0.1.2:4001.*/\1/p' | head -1)
peer=${home_p2p##*/}
daemon outside 5.0.0.10 "/ip4/5.0.0.21/tcp/$port/p2p/$peer" "$home_ipns"
served() { rm -rf "$W/pulled"; timeout 60 ip netns exec outside skopeo copy -q --src-tls-verify=false "docker://$outside_registry/library/app:1" "oci:$W/pulled:x"; }
wait_for 90 "outside pulls through the mapped port" served
has outside '.node.nat.relayed_peers == 0 and .node.nat.direct_peers >= 1' || fail "outside is not connected directly: $(status outside | jq -c .node.nat)"
say "outside dialled the mapped port and pulled"

gateway_stop
gateway_start
! mapped TCP || fail "the gateway has not forgotten what it had opened"
ip -n home addr add 10.0.1.3/24 dev eth0
for protocol in TCP UDP; do wait_for 30 "the $protocol port is mapped again" mapped $protocol; done
say "mapped again at a gateway that was started anew"

shoal_stop home
gone() { ! mapped TCP && ! mapped UDP; }
wait_for 30 "the daemon has its ports closed when it stops" gone
say "the ports are closed again"
