#!/bin/bash
# run.sh FOLDER COMMAND: runs a bash line in the guest that setup.sh made there, and returns its output and exit code. The guest
# sees this machine's whole file system copy-on-write: what it writes is dropped. Device rxe0 on dummy0 = 192.168.77.1.
# Environment: GUEST_CPUS=2 GUEST_MEMORY=4G GUEST_TIMEOUT_S=600 GUEST_WITHOUT_RDMA=1
set -u
here=$(dirname "$(readlink -f "$0")")
folder=$(readlink -f "$1")
shift
job=$(mktemp -d "$folder/jobs/XXXXXX")
machine=""
trap 'rm -rf "$job"' EXIT
trap 'kill $machine 2>/dev/null; wait; exit 130' INT TERM HUP
cp "$here/stage2.sh" "$job/stage2"
[ -n "${GUEST_WITHOUT_RDMA:-}" ] && sed -i '2i RXE_NONE=1' "$job/stage2"
{
  export -p | grep -v -E '^declare -x (GUEST_|SHLVL|OLDPWD|PWD|TERM|_)'
  printf 'cd %q\n%s\n' "$PWD" "$1"
} >"$job/cmd"
share=(-fsdev "local,id=root,path=/,security_model=none,multidevs=remap,readonly=on" -device virtio-9p-pci,fsdev=root,mount_tag=hostroot
  -fsdev "local,id=job,path=$job,security_model=none" -device virtio-9p-pci,fsdev=job,mount_tag=job
  -fsdev "local,id=sysroot,path=$folder/system,security_model=none,readonly=on" -device virtio-9p-pci,fsdev=sysroot,mount_tag=sysroot)
exec 8> >(exec cat)  # QEMU takes no terminals
out=$!
exec 9> >(exec cat >&2)
err=$!
LD_LIBRARY_PATH=$folder/qemu/usr/lib/x86_64-linux-gnu timeout "${GUEST_TIMEOUT_S:-600}" \
  "$folder/qemu/usr/bin/qemu-system-x86_64" -L "$folder/qemu/usr/share/qemu" -L "$folder/qemu/usr/share/seabios" \
  -nodefaults -no-user-config -display none -no-reboot -machine q35 -accel tcg,thread=multi -cpu max,la57=off \
  -smp "${GUEST_CPUS:-2}" -m "${GUEST_MEMORY:-4G}" -kernel "$folder/vmlinux" -initrd "$folder/initramfs.cpio" \
  -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on cryptomgr.notests rxe.sysroot=1" \
  -serial "file:$job/console" "${share[@]}" -device virtio-rng-pci -device virtio-serial-pci \
  -add-fd fd=8,set=1 -chardev file,id=out,path=/dev/fdset/1,append=on -device virtserialport,chardev=out,name=out \
  -add-fd fd=9,set=2 -chardev file,id=err,path=/dev/fdset/2,append=on -device virtserialport,chardev=err,name=err \
  </dev/null &
machine=$!
wait $machine
code=$?
exec 8>&- 9>&-
wait $out $err
[ -s "$job/rc" ] && exit "$(cat "$job/rc")"
if [ $code = 124 ]; then
  echo "the guest was stopped after ${GUEST_TIMEOUT_S:-600} s (GUEST_TIMEOUT_S)" >&2
else
  echo "the guest gave no exit code (QEMU's: $code)" >&2
  [ -f "$job/console" ] && tail -30 "$job/console" >&2
fi
exit 125
