# Runs a script of the tests on a kernel with nothing but cgroup version 2, then turns the machine off.
# MODULES, DIRECTORY and COMMAND are written here by vm.ts.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec </dev/null >/dev/ttyS0 2>&1
mkdir -p "/lib/modules/$(uname -r)"
mount --bind "MODULES" "/lib/modules/$(uname -r)"
ln -s /bin/busybox /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
for module in loop ext4 erofs veth nf_tables; do /run/modprobe "$module"; done
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "+cpu +cpuset +memory +pids +io" >/sys/fs/cgroup/cgroup.subtree_control
# A filesystem whose mounts can be idmapped, as Berth's data directory must be on.
truncate -s 1G /run/disk
mke2fs -q -t ext4 /run/disk
mount -o loop /run/disk /mnt
ip link set lo up
cd "DIRECTORY" || exit
TMPDIR=/mnt COMMAND
echo o >/proc/sysrq-trigger
sleep 60
