#!/bin/sh
# Process 1 of the user-mode Linux. The kernel's command line sets ARMLET_PYTHON, ARMLET_TESTS and
# ARMLET_SEED, paths without blanks.
# The root file system is the host's, read-only; what must be writable is in memory.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs bluetooth /var/lib/bluetooth
ln -s /proc/self/fd /dev/fd
mkdir -p /run/dbus /run/home /run/tmp
export HOME=/run/home TMPDIR=/run/tmp PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
cd /run
"$ARMLET_PYTHON" -S "${0%/*}/seed.py" "$ARMLET_SEED"
dbus-daemon --system --fork --nopidfile
"$ARMLET_PYTHON" -m pytest "$ARMLET_TESTS" -v -s -p no:cacheprovider --durations=0
echo "GUEST_EXIT=$?"
# LINUX_REBOOT_CMD_POWER_OFF; there is no init system to ask.
"$ARMLET_PYTHON" -S -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)'
