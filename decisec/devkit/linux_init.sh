#!/bin/busybox sh
# The first and only program of the Linux guest. Does what the tiny guest does, on a real kernel:
# prints READY once its devices are there, DONE after its work, BYE when it obeys the power button.
#
# Boot arguments; the kernel hands them on as environment variables:
#   blkw=KiB    write so much to the disk, past the page cache
#   blkr=KiB    read so much from the disk, likewise
#   tx=N        send N Ethernet frames of 1000 bytes
#   net=1       connect: take the address that the network offers, and say it as ADDRESS; and
#               the IPv4 address that the host names (decisec.ipv4=), and say it as IPV4
#   ping=A      with net=1: ping an address, and say how it went as PING
#   ping4=A     the same over IPv4, said as PING4
#
# At the end it says what its own kernel has counted, to be compared with what is billed.

/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

for module in /lib/modules/*; do
	insmod "$module" || echo "FAILED to load $module"
done

# Opened before anybody is told READY: a button pressed earlier would be lost.
exec 3</dev/input/event0

# Say whether an address answers: a word for it, the protocol's version, the address.
say_ping() {
	if ping "-$2" -q -c 3 -i 0.2 -W 2 "$3" >/dev/null; then echo "$1 yes"; else echo "$1 no"; fi
}

echo "CPUS $(nproc)"
if [ -e /sys/class/net/eth0 ] && [ "${net:-0}" -gt 0 ]; then
	ip link set eth0 up
	until address=$(ip -6 address show dev eth0 scope global | grep -v tentative | grep -o 'inet6 [^/]*'); do
		sleep 0.1
	done
	echo "ADDRESS ${address#inet6 } MTU $(cat /proc/sys/net/ipv6/conf/eth0/mtu)"
	# No name with a dot becomes an environment variable.
	if ipv4=$(grep -o 'decisec[.]ipv4=[^ ]*' /proc/cmdline); then
		ip address add "${ipv4#*=}/32" dev eth0
		ip route add 169.254.0.1 dev eth0
		ip route add default via 169.254.0.1
		echo "IPV4 ${ipv4#*=}"
	fi
	if [ -n "${ping:-}" ]; then say_ping PING 6 "$ping"; fi
	if [ -n "${ping4:-}" ]; then say_ping PING4 4 "$ping4"; fi
elif [ -e /sys/class/net/eth0 ]; then
	# IPv6 and ARP would send at moments of their own; so that eth0 sends what it is told to.
	echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
	ip link set eth0 up
	ip address add 192.0.2.2/24 dev eth0
	arp -s 192.0.2.1 02:00:00:00:00:01
fi
echo READY

if [ "${blkw:-0}" -gt 0 ]; then
	dd if=/dev/zero of=/dev/vda bs=64k count="$((blkw * 1024))" iflag=count_bytes \
		oflag=direct conv=notrunc,fsync status=none
fi
if [ "${blkr:-0}" -gt 0 ]; then
	dd if=/dev/vda of=/dev/null bs=64k count="$((blkr * 1024))" iflag=count_bytes,direct status=none
fi
if [ "${tx:-0}" -gt 0 ]; then
	# 958 bytes and the headers of ICMP, IPv4 and Ethernet. Nobody answers.
	ping -q -c "$tx" -i 0.01 -W 1 -s 958 192.0.2.1 >/dev/null
fi
echo DONE

# Blocks until the first event, which is the button.
dd bs=24 count=1 status=none <&3 >/dev/null

if [ -b /dev/vda ]; then
	# Fields 3 and 7 are sectors of 512 bytes (kernel: block/stat.rst).
	set -- $(cat /sys/block/vda/stat)
	echo "DISK read=$(($3 * 512)) written=$(($7 * 512))"
fi
if [ -e /sys/class/net/eth0 ]; then
	ip link set eth0 down
	cd /sys/class/net/eth0/statistics
	echo "NET received=$(cat rx_bytes) sent=$(cat tx_bytes)"
fi
echo BYE
# Changing a terminal's settings waits until its output is out; power off does not.
stty -echo <&1
poweroff -f
