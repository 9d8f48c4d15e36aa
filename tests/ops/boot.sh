#!/bin/sh
# In namespaces of its own: Debian's systemd as the first process of a copy of this machine. What it writes is in memory.
# boot.sh DIRECTORY: an empty one of the host; what is in its `share` is /mnt there.
set -eu
work=$1
mount --make-rprivate /
mount -t tmpfs tmpfs "$work/memory"
mkdir "$work/memory/upper" "$work/memory/work" "$work/memory/root"
root=$work/memory/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/memory/upper,workdir=$work/memory/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$work/share" "$root/mnt"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for unit in networking systemd-networkd-wait-online ifupdown-wait-online NetworkManager-wait-online systemd-firstboot; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit.service"  # it has the loopback interface alone
done
rm -f "$root/etc/machine-id"
echo uninitialized > "$root/etc/machine-id"
mkdir "$root/host"
cd "$root"
pivot_root . host
umount -l /host
# In a container systemd leaves this to whoever made it; without it credentials do not arrive.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target
