#!/bin/busybox sh
# The first program of the Linux guest that relays frames (relay.c). Its stack has the addresses of
# the boot arguments, and is asked for by nobody to be still: it answers what comes to it.
#
#   here=A      its IPv6 address; the gateway is fe80::1
#   here4=A     its IPv4 address; the gateway is 169.254.0.1

/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /lib/modules/*; do
	insmod "$module" || echo "FAILED to load $module"
done

# What it knows of its neighbours it believes for hours: it asks for them once, before it relays.
for family in ipv4 ipv6; do
	echo 36000000 >/proc/sys/net/$family/neigh/eth0/base_reachable_time_ms
	echo 36000 >/proc/sys/net/$family/neigh/eth0/delay_first_probe_time
done
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra
echo 0 >/proc/sys/net/ipv6/conf/eth0/router_solicitations
ip link set eth0 up
ip -6 address add "$here/128" dev eth0
ip -6 route add default via fe80::1 dev eth0
ip address add "$here4/32" dev eth0
ip route add 169.254.0.1 dev eth0
ip route add default via 169.254.0.1
until ! ip -6 address show dev eth0 | grep -q tentative; do
	sleep 0.1
done
for gateway in fe80::1%eth0 169.254.0.1; do
	ping -q -c 1 -W 5 "$gateway" >/dev/null && echo "PING $gateway yes"
done
exec /relay eth0
