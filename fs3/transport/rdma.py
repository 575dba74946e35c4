"""RDMA over verbs: the adapter of fs3.transport.rdma_port, and the only module that imports pyverbs.

pyverbs never lets go of the interpreter's lock: nothing here may block. The completion channel's descriptor is non-blocking,
and asked only when it is readable; notification is armed again before the queue is drained, so that nothing is missed.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import logging
import mmap
import os
import resource
import secrets
import select
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from ..errors import ConfigError
from .rdma_flow import Limits, Post, Work
from .rdma_port import MESSAGE_SIZE, Completion, Device, Ends, QueuePair, Region, Remote

logger = logging.getLogger("fs3.transport.rdma")

_handlers = list(logging.root.handlers)
try:
    from pyverbs.addr import GID as Gid
    from pyverbs.addr import AHAttr, GlobalRoute
    from pyverbs.cq import CQ, CompChannel
    from pyverbs.device import Context, get_device_list
    from pyverbs.mr import MR
    from pyverbs.pd import PD
    from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.wr import SGE, RecvWR, SendWR

    try:
        import pyverbs.enums as verbs  # rdma-core up to 56
    except ImportError:
        import pyverbs.libibverbs_enums as verbs
    MISSING = ""
except ImportError as _error:  # pragma: no cover - depends on the machine
    MISSING = f"the package pyverbs cannot be imported ({_error}); Debian: apt-get install python3-pyverbs ibverbs-providers"
logging.root.handlers[:] = _handlers  # pyverbs configures the process's log when it is imported

INLINE_MAX = 96
"""Messages up to this size are handed to the device by value; most cards take as much, some refuse more."""
_POLLED_MAX = 64
_RUNG_MAX = 16
"""Work requests that are given to the device in one call."""
_RETRIES = 6  # 7 would mean for ever on some devices
_TIMEOUT = 17  # 4.096 us * 2**17 = 0.54 s for each try
_RNR_TIMER = 12
_READS_MAX = 16
_GIDS_MAX = 256
_LIST_AGAIN_S = 10.0
_ACCESS_OF_REGION = ("IBV_ACCESS_LOCAL_WRITE", "IBV_ACCESS_REMOTE_WRITE", "IBV_ACCESS_REMOTE_READ")
_SYSTEM_LISTS = "/sys/class/infiniband"


def devices() -> list[str]:
    """Names of the devices of this host. Raises ConfigError naming what is missing."""
    if MISSING:
        raise ConfigError(MISSING)
    try:
        names = [device.name.decode() for device in get_device_list()]
    except PyverbsRDMAError:
        names = []
    if names:
        return names
    known = sorted(os.listdir(_SYSTEM_LISTS)) if os.path.isdir(_SYSTEM_LISTS) else []
    if known:
        raise ConfigError(
            f"the kernel has RDMA devices ({', '.join(known)}) that libibverbs has no provider for, or /dev/infiniband is "
            "missing in this container; Debian: apt-get install ibverbs-providers"
        )
    raise ConfigError("no RDMA device found (ibv_devices shows them; is the card's driver, or rdma_rxe, loaded?)")


def open_devices(wanted: Sequence[str] = (), gid_index: int = -1) -> list[VerbsDevice]:
    """The devices named, as NAME or NAME:PORT, or all of this host with an active port. gid_index: -1 lets us choose. Raises
    ConfigError where one that was named cannot be used, or there is none."""
    names = devices()
    if wanted:
        opened = []
        for each in wanted:
            name, _, port = each.partition(":")
            if name not in names:
                raise ConfigError(f"no RDMA device {name!r} on this host; there are: {', '.join(names)}")
            if port and not port.isdecimal():
                raise ConfigError(f"bad RDMA device {each!r}: expected NAME or NAME:PORT, such as {name}:1")
            opened.append(VerbsDevice(name, int(port or 0), gid_index))
        return opened
    found, refused = [], []
    for name in names:
        try:
            found.append(VerbsDevice(name, 0, gid_index))
        except ConfigError as error:
            refused.append(error.message)
    if not found:
        raise ConfigError("; ".join(refused))
    return found


@dataclass(frozen=True, slots=True)
class _Gid:
    index: int
    address: ipaddress.IPv6Address
    version_2: bool

    def __str__(self) -> str:
        return f"{self.index}: {self.address} ({'RoCE v2' if self.version_2 else 'InfiniBand or RoCE v1'})"


class VerbsDevice(Device):
    """One port of a device. port: 0 takes the first that is active."""

    def __init__(self, name: str, port: int = 0, gid_index: int = -1) -> None:
        """Raises ConfigError where it cannot be used, saying why."""
        self.name = name
        if MISSING:
            raise ConfigError(MISSING)
        try:
            self._context = Context(name=name)
            limits = self._context.query_device()
            ports = limits.phys_port_cnt
            self.reads = max(1, min(_READS_MAX, limits.max_qp_rd_atom, limits.max_qp_init_rd_atom))
        except PyverbsRDMAError as error:
            why = "; may this user read and write /dev/infiniband/uverbs*?" if error.error_code == errno.EACCES else ""
            raise ConfigError(f"RDMA device {name} cannot be opened: {error}{why}") from None
        if port > ports:
            raise ConfigError(f"RDMA device {name} has no port {port}, only {ports}")
        candidates = [port] if port else list(range(1, ports + 1))
        self.port = next((each for each in candidates if self._active(each)), 0)
        if not self.port:
            shown = ", ".join(map(str, candidates))
            raise ConfigError(
                f"port {shown} of RDMA device {name} is not active: is its link up? (`rdma link`, `ibstat`, `ip link`)"
            )
        attributes = self._context.query_port(self.port)
        self.mtu: int = attributes.active_mtu
        self.lid: int = attributes.lid
        self._gid_places = min(_GIDS_MAX, attributes.gid_tbl_len)
        self._gids = self._list_gids()
        self._listed_at = time.monotonic()
        self._fixed = self._gid_at(gid_index) if gid_index >= 0 else None
        self._domain = PD(self._context)
        self.opened: list[Any] = [self._context, self._domain]
        weakref.finalize(self, _close_all, self.opened, os.getpid())
        self.registered = 0

    def _active(self, port: int) -> bool:
        try:
            return bool(self._context.query_port(port).state == verbs.IBV_PORT_ACTIVE)
        except PyverbsRDMAError:
            return False

    def active(self) -> bool:
        return self._active(self.port)

    def _list_gids(self) -> list[_Gid]:
        found = []
        for index in range(self._gid_places):
            try:
                address = ipaddress.IPv6Address(str(self._context.query_gid(self.port, index).gid))
                kind = self._context.query_gid_type(self.port, index)
            except (PyverbsRDMAError, ValueError):
                continue  # an empty place in the table
            if int(address):
                found.append(_Gid(index, address, kind == verbs.IBV_GID_TYPE_SYSFS_ROCE_V2))
        return found

    def has(self, local: str) -> bool:
        wanted = _as_gid(local)
        found = any(gid.address == wanted for gid in self._gids)
        if not found and self._listed_at + _LIST_AGAIN_S < time.monotonic():
            self._gids, self._listed_at = self._list_gids(), time.monotonic()
            found = any(gid.address == wanted for gid in self._gids)
        return found

    def _gid_at(self, index: int) -> _Gid:
        for gid in self._gids:
            if gid.index == index:
                return gid
        there = "; ".join(map(str, self._gids)) or "none"
        raise ConfigError(f"port {self.port} of RDMA device {self.name} has no GID {index}; there are {there}")

    def gid_for(self, local: str) -> _Gid:
        """The one set; else that of the address, RoCE v2 if it can be; else RoCE v2 over IPv4, RoCE v2, the first. The table
        is read again where the address is not known: it may have come since. Raises ConfigError."""
        if self._fixed is not None:
            return self._fixed
        wanted = _as_gid(local)
        self.has(local)
        if not self._gids:
            raise ConfigError(f"port {self.port} of RDMA device {self.name} has no GID: has its interface an address?")
        return max(self._gids, key=lambda gid: (
            gid.address == wanted, gid.version_2, gid.address.ipv4_mapped is not None, -gid.index,
        ))  # fmt: skip

    def forget(self, *closed: Any) -> None:
        self.opened[:] = [each for each in self.opened if not any(each is other for other in closed)]

    def allocate(self, size: int) -> VerbsRegion:
        return VerbsRegion(self, self._domain, _memory(size))

    def register(self, memory: Any) -> VerbsRegion:
        return VerbsRegion(self, self._domain, memory)

    def queue_pair(self, ours: Limits, receives: int, fd: int, local: str, lends: bool) -> VerbsQueuePair:
        gid = self.gid_for(local)
        try:
            return VerbsQueuePair(self, self._context, self._domain, ours, receives, fd, gid, lends)
        except PyverbsRDMAError as error:
            raise ConfigError(f"RDMA device {self.name}: no queue pair: {error}{_memlock(error, 0)}") from None
        except OSError as error:
            raise ConfigError(f"RDMA device {self.name}: no queue pair: {error.strerror}") from None


def _close_all(opened: Sequence[Any], process: int) -> None:
    """What was opened last goes first. Left to the garbage collector, or to the process's end, pyverbs closes devices before
    what belongs to them, which fails or crashes."""
    if os.getpid() != process:  # a fork has the same descriptors: its end would take them from its parent
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))  # nor is pyverbs to do it
        return
    for each in reversed(opened):
        try:
            each.close()
        except PyverbsError as error:
            logger.debug("not closed: %s", error)


def _memory(size: int) -> mmap.mmap:
    """Raises ConfigError."""
    try:
        return mmap.mmap(-1, size)
    except OSError as error:
        raise ConfigError(f"{size / 2**20:.1f} MiB of memory cannot be had: {error.strerror}") from None


def _as_gid(local: str) -> ipaddress.IPv6Address:
    """As RoCE has an address of an interface."""
    try:
        address = ipaddress.ip_address(local.partition("%")[0])
    except ValueError:
        return ipaddress.IPv6Address(0)
    return address if address.version == 6 else ipaddress.IPv6Address((0xFFFF << 32) | int(address))


def _memlock(error: Any, wanted: int) -> str:
    """What to do where the limit on locked memory may be the reason. wanted: bytes, of this process in all; 0: unknown."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if error.error_code not in (errno.ENOMEM, errno.EPERM, errno.EAGAIN) or limit == resource.RLIM_INFINITY:
        return ""
    needs = f", and {-(-wanted // 2**20)} MiB are wanted" if wanted else ""
    return (
        f" (this process may lock {limit // 1024} KiB of memory{needs}: raise it by `ulimit -l unlimited`, "
        "LimitMEMLOCK=infinity in the unit, or --ulimit memlock=-1 of the container)"
    )


class VerbsRegion(Region):
    def __init__(self, device: VerbsDevice, domain: Any, memory: Any) -> None:
        self.view = memoryview(memory).cast("B")
        self.address = device.address_of(self.view)
        self._device = device
        access = 0
        for name in _ACCESS_OF_REGION:
            access |= getattr(verbs, name)
        size = len(self.view)
        try:
            self._registered = MR(domain, size, access, address=self.address)
        except PyverbsRDMAError as error:
            raise ConfigError(
                f"{size / 2**20:.1f} MiB cannot be registered with RDMA device {device.name}: {error}"
                f"{_memlock(error, device.registered + size)}"
            ) from None
        device.registered += size
        device.opened.append(self._registered)
        self._size = size
        self.key = self._registered.rkey
        self.local_key = self._registered.lkey

    def close(self) -> None:
        try:
            self._registered.close()
        except PyverbsError as error:  # the device is gone; nobody who lets go of memory can do anything about it
            logger.error("RDMA device %s: memory stays registered: %s", self._device.name, error)
        self._device.forget(self._registered)
        self._device.registered -= self._size
        self._size = 0


class _Chain:
    """Work requests linked to each other for good, to be used again and again, from as far to the end as needed: pyverbs can
    link, and not unlink, and gives the memory of none that it made back."""

    def __init__(self, length: int) -> None:
        self.segments = [SGE(0, 0, 0) for _ in range(length)]
        self.requests: list[Any] = []
        for segment in self.segments:
            request = SendWR(num_sge=1, sg=[segment])
            request.sg_list = segment  # and not a copy of it, so that setting the segment is enough
            if self.requests:
                self.requests[-1].next_wr = request
            self.requests.append(request)


@dataclass(frozen=True, slots=True)
class _Rung:
    """A work request that waits for `ring`."""

    number: int
    opcode: int
    flags: int
    immediate: int
    address: int
    length: int
    key: int
    remote: Remote | None


class VerbsQueuePair(QueuePair):
    """A reliable connected queue pair with its own completion queue and buffers."""

    def __init__(
        self, device: VerbsDevice, context: Any, domain: Any, ours: Limits, receives: int, fd: int, gid: _Gid, lends: bool
    ) -> None:
        self._device = device
        self._gid = gid
        self._lends = lends
        self._sends = ours.sends
        self._channel = _channel(context)
        self._epoll = select.epoll(2)  # one descriptor to wait for both
        self._epoll.register(self._channel.fileno, select.EPOLLIN)
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        self._queue = CQ(context, ours.depth + receives + 1, None, self._channel.channel, 0)
        self._queue.req_notify()
        self._buffers = VerbsRegion(device, domain, _memory((ours.sends + receives) * MESSAGE_SIZE))
        self._receives = [self._receive_into(index) for index in range(receives)]
        self._chain = _Chain(_RUNG_MAX)
        self._waiting: list[_Rung] = []
        try:
            self._pair, self._inline = self._made(domain, ours.depth, receives)
        except PyverbsError:
            self._close_parts()
            raise
        device.opened += [self._channel.channel, self._queue, self._pair]
        self._pair.to_init(self._attributes())  # receives can be posted from here on
        self._destroyed = False
        self._gone = False
        self.ends = Ends(self._pair.qp_num, secrets.randbits(24), gid.address.exploded, device.mtu, device.lid)

    def _made(self, domain: Any, depth: int, receives: int) -> tuple[Any, int]:
        """And the bytes that it takes by value: devices refuse what is too much for them, and do not tell before."""
        for inline in (INLINE_MAX, 32, 0):
            capacities = QPCap(
                max_send_wr=depth, max_recv_wr=receives, max_send_sge=1, max_recv_sge=1, max_inline_data=inline
            )
            init = QPInitAttr(qp_type=verbs.IBV_QPT_RC, scq=self._queue, rcq=self._queue, sq_sig_all=0, cap=capacities)
            try:
                return QP(domain, init), inline
            except PyverbsRDMAError:
                if not inline:
                    raise
        raise AssertionError

    def _receive_into(self, index: int) -> Any:
        address = self._buffers.address + (self._sends + index) * MESSAGE_SIZE
        return RecvWR(wr_id=index, num_sge=1, sg=[SGE(address, MESSAGE_SIZE, self._buffers.local_key)])

    def _attributes(self) -> Any:
        attributes = QPAttr()
        attributes.port_num = self._device.port
        attributes.pkey_index = 0
        attributes.qp_access_flags = verbs.IBV_ACCESS_LOCAL_WRITE
        if self._lends:
            attributes.qp_access_flags |= verbs.IBV_ACCESS_REMOTE_WRITE | verbs.IBV_ACCESS_REMOTE_READ
        return attributes

    def connect(self, peer: Ends) -> None:
        try:
            attributes = self._attributes()
            route = GlobalRoute(dgid=Gid(peer.gid), sgid_index=self._gid.index, hop_limit=64)
            attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=self._device.port, dlid=peer.lid)
            attributes.path_mtu = min(self._device.mtu, peer.mtu)
            attributes.dest_qp_num = peer.number
            attributes.rq_psn = peer.sequence
            attributes.sq_psn = self.ends.sequence
            attributes.max_rd_atomic = attributes.max_dest_rd_atomic = self._device.reads
            attributes.min_rnr_timer = _RNR_TIMER
            attributes.timeout = _TIMEOUT
            attributes.retry_cnt = _RETRIES
            attributes.rnr_retry = _RETRIES
            self._pair.to_rts(attributes)
        except PyverbsError as error:
            raise OSError(errno.EIO, f"queue pair cannot be connected: {error}") from None

    def received(self, index: int, length: int) -> memoryview:
        at = (self._sends + index) * MESSAGE_SIZE
        return self._buffers.view[at : at + length]

    def sending(self, index: int) -> memoryview:
        return self._buffers.view[index * MESSAGE_SIZE : (index + 1) * MESSAGE_SIZE]

    def post_receive(self, index: int) -> None:
        self._posted("post_recv", self._receives[index])

    def post_message(self, post: Post, length: int) -> None:
        flags = verbs.IBV_SEND_SIGNALED if post.signaled else 0
        if max(length, 1) <= self._inline:
            flags |= verbs.IBV_SEND_INLINE
        if post.fenced:
            flags |= verbs.IBV_SEND_FENCE
        # An empty message has a byte all the same: pyverbs wants a segment, and no length means 2 GiB to some devices.
        address = self._buffers.address + max(post.buffer, 0) * MESSAGE_SIZE
        immediate = post.immediate | (0 if length else _EMPTY)
        self._post(_Rung(
            post.number, verbs.IBV_WR_SEND_WITH_IMM, flags, immediate, address, max(length, 1), self._buffers.local_key, None
        ))  # fmt: skip

    def post_transfer(self, post: Post, region: Region, offset: int, remote: Remote) -> None:
        assert isinstance(region, VerbsRegion) and offset + remote.length <= len(region.view)
        opcode = verbs.IBV_WR_RDMA_READ if post.work is Work.READ else verbs.IBV_WR_RDMA_WRITE
        flags = verbs.IBV_SEND_SIGNALED if post.signaled else 0
        self._post(_Rung(post.number, opcode, flags, 0, region.address + offset, remote.length, region.local_key, remote))

    def _post(self, rung: _Rung) -> None:
        self._waiting.append(rung)
        if len(self._waiting) == _RUNG_MAX:
            self.ring()

    def ring(self) -> None:
        """All that waits, in one call, which copies it into the device's queue."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        first = _RUNG_MAX - len(waiting)
        chain = self._chain
        for at, rung in enumerate(waiting, first):
            request, segment = chain.requests[at], chain.segments[at]
            request.wr_id = _SEND | rung.number
            request.opcode = rung.opcode
            request.send_flags = rung.flags
            request.imm_data = rung.immediate
            segment.addr, segment.length, segment.lkey = rung.address, rung.length, rung.key
            if rung.remote is not None:
                request.set_wr_rdma(rung.remote.key, rung.remote.address)
        self._posted("post_send", chain.requests[first])

    def _posted(self, verb: str, request: Any) -> None:
        if self._destroyed:
            raise OSError(errno.ENOTCONN, "the queue pair is destroyed")
        try:
            getattr(self._pair, verb)(request)
        except PyverbsRDMAError as error:
            raise OSError(errno.EIO, f"cannot post a work request: {error}") from None

    async def wait(self) -> None:
        if self._destroyed:
            raise OSError(errno.ENOTCONN, "the queue pair is destroyed")
        try:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
        except trio.ClosedResourceError:
            raise OSError(errno.ENOTCONN, "the queue pair is destroyed") from None
        self._arm()

    def _arm(self) -> None:
        try:
            while True:
                self._channel.channel.get_cq_event(self._queue)
                self._queue.ack_events(1)
        except PyverbsRDMAError as error:
            if error.error_code != errno.EAGAIN:
                raise OSError(errno.EIO, f"completion channel: {error}") from None
        try:
            self._queue.req_notify()
        except PyverbsError as error:
            raise OSError(errno.EIO, f"completion queue: {error}") from None

    def poll(self) -> list[Completion]:
        if self._destroyed:
            raise OSError(errno.ENOTCONN, "the queue pair is destroyed")
        completions: list[Completion] = []
        count = _POLLED_MAX
        while count == _POLLED_MAX:  # all of them: of those left there would be no notice
            try:
                count, found = self._queue.poll(_POLLED_MAX)
            except PyverbsError as error:  # it overflowed, or the device is gone
                raise OSError(errno.EIO, f"completion queue: {error}") from None
            completions += [self._completion(entry) for entry in found or ()]
        return completions

    def _completion(self, entry: Any) -> Completion:
        receive = not entry.wr_id & _SEND
        error = ""
        if entry.status != verbs.IBV_WC_SUCCESS:
            error = f"{_STATUSES.get(entry.status, 'it says no more')} (work completion status {entry.status})"
        immediate = entry.imm_data if receive and not error else 0
        length = 0 if immediate & _EMPTY else entry.byte_len
        return Completion(receive, entry.wr_id & ~_SEND, length, immediate & ~_EMPTY, error)

    def _close_parts(self) -> None:
        for each in (self._buffers, self._queue, self._channel.channel):
            each.close()

    def destroy(self) -> bool:
        if self._destroyed:
            return self._gone
        self._destroyed = True
        trio.lowlevel.notify_closing(self._epoll.fileno())
        self._epoll.close()
        try:
            self._pair.close()  # returns when the device has let go of all memory
            self._gone = True
            self._close_parts()
            self._device.forget(self._pair, self._queue, self._channel.channel)
        except PyverbsRDMAError as error:
            logger.error("RDMA device %s: %s", self._device.name, error)
        return self._gone


_STATUSES = {
    1: "a message longer than the receive buffer",
    4: "local memory with a wrong key or range",
    5: "the queue pair is in error",
    9: "a request that the peer's device refuses",
    10: "the peer's memory with a wrong key or range",
    11: "the peer's device failed",
    12: "the peer's device does not answer",
    13: "the peer has no receive posted",
}
"""What a failed work completion says, by the numbers of verbs."""
_EMPTY = 1 << 31
"""In the immediate value: the message has no content."""
_SEND = 1 << 62
"""In the id of a work request: it is no receive."""


@dataclass(frozen=True, slots=True)
class _Channel:
    """A completion channel. pyverbs tells of its descriptor only from rdma-core 57 on."""

    channel: Any
    fileno: int


def _channel(context: Any) -> _Channel:
    before = _event_fds()
    channel = CompChannel(context)
    fd = channel.fd if hasattr(channel, "fd") else (_event_fds() - before).pop()
    os.set_blocking(fd, False)
    return _Channel(channel, fd)


def _event_fds() -> set[int]:
    """Descriptors of completion channels."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
        except OSError:
            continue  # the descriptor of the listing itself
    return found
