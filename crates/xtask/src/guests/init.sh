#!/bin/busybox sh
# First program of both guests. It loads the drivers, and then either hands over
# to the system on the disk (`guest=debian`) or is the system itself.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/mod/$module" 2>/dev/null; done </mod/order
mkdir -p /run /tmp /dev/pts /dev/shm

# Prints the device of the partition that is called guest-root, on whatever disk it is.
find_root() {
    for event in /sys/class/block/*/uevent; do
        if grep -q '^PARTNAME=guest-root$' "$event"; then
            sed -n 's/^DEVNAME=/\/dev\//p' "$event"
            return 0
        fi
    done
    return 1
}

if grep -q 'guest=debian' /proc/cmdline; then
    mkdir -p /root
    until root=$(find_root); do sleep 0.1; done
    mount -t ext4 "$root" /root
    umount /proc /sys
    mount -o move /dev /root/dev
    exec switch_root /root /sbin/init
fi

mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t devpts devpts /dev/pts
hostname tiny
ip link set lo up
mkdir -p /disk
for device in /dev/vda /dev/nvme0n1 /dev/sda; do
    [ -b "$device" ] && mount -t ext4 "$device" /disk 2>/dev/null && break
done
export PATH=/bin HOME=/ TERM=dumb
while true; do setsid -c /bin/agent </dev/ttyS0 >/dev/ttyS0 2>&1; done
