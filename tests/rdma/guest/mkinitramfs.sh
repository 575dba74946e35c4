#!/bin/bash
# mkinitramfs.sh ROOT KVER OUT: a minimal initramfs of busybox, /init and the modules that mount the host's root
set -e; here=$(dirname "$(readlink -f "$0")"); system=$1 kv=$2 out=$3; w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
mkdir -p "$w"/{bin,mods}; install -m755 "$here/init" "$w/init"; install -m755 "$system/usr/bin/busybox" "$w/bin/busybox"
M=$system/usr/lib/modules/$kv
for m in virtio_pci virtio_mmio virtio_console 9pnet_virtio 9p overlay; do
  l=$(grep -E "/$m\.ko:" "$M/modules.dep") || continue
  for f in $(echo "${l#*:}" | tr ' ' '\n' | tac) "${l%%:*}"; do echo "$f"; done
done | awk '!s[$0]++' | while read f; do cp "$M/$f" "$w/mods/"; echo "${f##*/}" >>"$w/mods/order"; done
(cd "$w"; find . | bin/busybox cpio -o -H newc 2>/dev/null) >"$out"
