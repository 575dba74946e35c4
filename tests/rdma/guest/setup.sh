#!/bin/bash
# setup.sh FOLDER: makes a guest there that has a real RDMA verbs stack (Soft-RoCE), out of Debian packages. They are downloaded
# and unpacked, nothing is installed. Needs about 1.2 GB and a minute; does nothing if FOLDER has one already.
# Exit code 77: the packages cannot be had here; the last line says why.
set -eu
here=$(dirname "$(readlink -f "$0")")
folder=$(readlink -m "$1")
[ -s "$folder/kver" ] && exit 0
lacking() { echo "$*" >&2; exit 77; }
for program in apt-get apt-cache dpkg-deb python3; do
  command -v $program >/dev/null || lacking "no program $program here; the guest is made of Debian's packages"
done
newest() { apt-cache depends --no-recommends --no-suggests linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/{print $2; exit}'; }
kernel=$(newest)
if [ -z "$kernel" ]; then
  [ "$(id -u)" = 0 ] || lacking "apt knows no packages, and this user is not root; run: apt-get update"
  apt-get -q update >/dev/null 2>&1 || lacking "apt-get update fails: no network?"
  kernel=$(newest)
  [ -n "$kernel" ] || lacking "apt has no package linux-image-amd64: no network, or not Debian?"
fi
mkdir -p "$folder"/{debs,jobs,qemu} "$folder/system/usr/"{lib,lib64,bin,sbin}
cd "$folder"
guest="$kernel kmod busybox-static iproute2 libbpf1 libelf1 libmnl0 libxtables12 libbsd0 libmd0 libtirpc3 libdb5.3
  rdma-core ibverbs-providers libibverbs1 librdmacm1 ibverbs-utils rdmacm-utils perftest libibumad3 libpci3 python3-pyverbs
  libnl-3-200 libnl-route-3-200"
host="qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu libslirp0 libfdt1 libcapstone4 libbrlapi0.8
  libcacard0 libexecs0 libspice-server1 libusbredirparser1 libvdeplug2 libusb-1.0-0 liburing2 libsndio7.0
  libgstreamer-plugins-base1.0-0 libopus0 liborc-0.4-0 libepoxy0 libpci3 libpmem1 libndctl6 libdaxctl1 libkmod2
  libibverbs1 librdmacm1 libnl-3-200 libnl-route-3-200"
has() { compgen -G "debs/${1}_*.deb" >/dev/null; }
fetch() { (cd debs && timeout 600 apt-get -q download "$@" >../download.log 2>&1) || true; }
fetch $guest $host
for package in $guest $host; do
  has "$package" || fetch "$package"
  has "$package" || lacking "package $package cannot be downloaded: $(grep -E '^E:' download.log | head -1)"
done
for name in lib lib64 bin sbin; do ln -sfn usr/$name system/$name; done
for package in $guest; do dpkg-deb --fsys-tarfile debs/"${package}"_*.deb | tar -x --keep-directory-symlink -C system; done
for package in $host; do dpkg-deb --fsys-tarfile debs/"${package}"_*.deb | tar -x -C qemu; done
[ -d qemu/lib ] && cp -an qemu/lib/. qemu/usr/lib/
missing=$(LD_LIBRARY_PATH=qemu/usr/lib/x86_64-linux-gnu ldd qemu/usr/bin/qemu-system-x86_64 | awk '/not found/{print $1}')
[ -z "$missing" ] || lacking "QEMU lacks libraries:" $missing
version=${kernel#linux-image-}
ln -sfn system/usr/bin/kmod depmod
./depmod -b "$folder/system" "$version"
python3 "$here/extract_vmlinux.py" "system/boot/vmlinuz-$version" vmlinux
"$here/mkinitramfs.sh" "$folder/system" "$version" "$folder/initramfs.cpio"
mkdir -p python && ln -sfn ../system/usr/lib/python3/dist-packages/pyverbs python/pyverbs
rm -rf debs
echo "$version" >kver
