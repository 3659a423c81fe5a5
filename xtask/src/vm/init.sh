#!/bin/busybox sh
# The first process of the machine that `cargo xtask vm-test` boots. What is to be loaded and run is appended.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /sbin /usr/bin /usr/sbin /etc /var /root
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
# The loader reads all types of the kernel whenever it loads an object, five megabytes that an emulated CPU takes a
# second for, and our programs are not relocated by any of them.
mount -o bind /dev/null /sys/kernel/btf/vmlinux

load() {
    insmod "$@" || { echo "netpath-vm: end load-$1 1"; poweroff -f; }
}

step() {
    name=$1
    shift
    # What the firmware printed last has no end of line.
    echo
    echo "netpath-vm: begin $name"
    "$@" 2>&1
    status=$?
    # On a line of its own, whatever was printed last.
    echo
    echo "netpath-vm: end $name $status"
}

