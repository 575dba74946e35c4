#!/bin/bash
# setup.sh FOLDER: makes a guest there that has a real RDMA verbs stack (Soft-RoCE), out of Debian packages. They are downloaded
# and unpacked, nothing is installed. Needs about 1.5 GB and a minute; does nothing if FOLDER has one already.
set -eu
here=$(dirname "$(readlink -f "$0")")
folder=$(readlink -m "$1")
[ -s "$folder/kver" ] && exit 0
mkdir -p "$folder"/{debs,jobs,qemu} "$folder/system/usr/"{lib,lib64,bin,sbin}
cd "$folder"
kernel=$(apt-cache depends --no-recommends --no-suggests linux-image-amd64 | awk '/Depends: linux-image-/{print $2; exit}')
[ -n "$kernel" ] || { echo "no package linux-image-amd64 (apt-get update must have run)" >&2; exit 1; }
guest="$kernel kmod busybox-static rdma-core ibverbs-providers libibverbs1 librdmacm1 ibverbs-utils rdmacm-utils
  python3-pyverbs libnl-3-200 libnl-route-3-200"
host="qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu libslirp0 libfdt1 libcapstone4 libbrlapi0.8
  libcacard0 libexecs0 libspice-server1 libusbredirparser1 libvdeplug2 libusb-1.0-0 liburing2 libsndio7.0
  libgstreamer-plugins-base1.0-0 libopus0 liborc-0.4-0 libepoxy0 libpci3 libpmem1 libndctl6 libdaxctl1 libkmod2
  libibverbs1 librdmacm1 libnl-3-200 libnl-route-3-200"
for package in $guest $host; do
  compgen -G "debs/${package}_*.deb" >/dev/null || (cd debs && apt-get -q download "$package" 2>&1 | grep -E '^E:' || true)
done
for name in lib lib64 bin sbin; do ln -sfn usr/$name system/$name; done
for package in $guest; do dpkg-deb --fsys-tarfile debs/"${package}"_*.deb | tar -x --keep-directory-symlink -C system; done
for package in $host; do dpkg-deb --fsys-tarfile debs/"${package}"_*.deb | tar -x -C qemu; done
[ -d qemu/lib ] && cp -an qemu/lib/. qemu/usr/lib/
missing=$(LD_LIBRARY_PATH=qemu/usr/lib/x86_64-linux-gnu ldd qemu/usr/bin/qemu-system-x86_64 | grep 'not found' || true)
[ -z "$missing" ] || { echo "QEMU lacks libraries:" "$missing" >&2; exit 1; }
version=${kernel#linux-image-}
ln -sfn system/usr/bin/kmod depmod
./depmod -b "$folder/system" "$version"
python3 "$here/extract_vmlinux.py" "system/boot/vmlinuz-$version" vmlinux
"$here/mkinitramfs.sh" "$folder/system" "$version" "$folder/initramfs.cpio"
mkdir -p python && ln -sfn ../system/usr/lib/python3/dist-packages/pyverbs python/pyverbs
echo "$version" >kver
