# The first process of a machine: makes what a booted node has, reaps orphans, ends by SIGKILL.
# Arguments: the machine's name, and the directory of what it keeps over a reboot.
set -eu
hostname "$1"
disk=$2

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /run/cgroup /run/over
# sysfs shows the network namespace it was mounted in; the cgroups stay the host's.
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -R -l /run/cgroup
mount -t bpf bpf /sys/fs/bpf

# Mount points are made in layers of memory, so that nothing is made on the host; what stays is the machine's disk.
for dir in etc opt var/lib var/log; do
    mkdir -p "/run/over/$dir/upper" "/run/over/$dir/work"
    mount -t overlay overlay -o "lowerdir=/$dir,upperdir=/run/over/$dir/upper,workdir=/run/over/$dir/work" "/$dir"
done
for dir in /etc/cni /etc/containerd /etc/netpath /opt/cni /var/lib/cni /var/lib/netpath /var/lib/containerd /var/lib/kubelet; do
    mkdir -p "$disk$dir" "$dir"
    mount --bind "$disk$dir" "$dir"
done
# Kubelet hands mounts to containers.
mount --make-rshared /

ip link set lo up
sleep infinity &
touch /run/machine-is-up
while :; do wait || :; done
