"""RDMA over verbs: the adapter of fs3.transport.rdma_port, and the only module that imports pyverbs.

pyverbs never lets go of the interpreter's lock: nothing here may block. The completion channel's descriptor is non-blocking,
and asked only when it is readable; notification is armed again before the queue is drained, so that nothing is missed.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import secrets
import select
from collections.abc import Sequence
from typing import Any

import trio

from ..errors import ConfigError
from .rdma_flow import Limits, Post, Work
from .rdma_port import MESSAGE_SIZE, Completion, Device, Ends, QueuePair, Region, Remote

logger = logging.getLogger("fs3.transport.rdma")

try:
    from pyverbs.addr import GID as Gid
    from pyverbs.addr import AHAttr, GlobalRoute
    from pyverbs.cq import CQ, CompChannel
    from pyverbs.device import Context, get_device_list
    from pyverbs.mr import MR
    from pyverbs.pd import PD
    from pyverbs.pyverbs_error import PyverbsRDMAError
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.wr import SGE, RecvWR, SendWR

    try:
        import pyverbs.enums as verbs  # rdma-core up to 56
    except ImportError:
        import pyverbs.libibverbs_enums as verbs
    MISSING = ""
except ImportError as _error:  # pragma: no cover - depends on the machine
    MISSING = f"the package pyverbs cannot be imported ({_error}); Debian: apt-get install python3-pyverbs ibverbs-providers"

INLINE_MAX = 128
"""Messages up to this size are handed to the device by value."""
_POLLED_MAX = 64
_PORT = 1
_RETRIES = 6  # 7 would mean for ever on some devices
_TIMEOUT = 17  # 4.096 us * 2**17 = 0.54 s for each try
_RNR_TIMER = 12
_READS_MAX = 16
_GIDS_MAX = 64
_OF_IPV4 = ":0000:ffff:"
_ACCESS_OF_REGION = ("IBV_ACCESS_LOCAL_WRITE", "IBV_ACCESS_REMOTE_WRITE", "IBV_ACCESS_REMOTE_READ")


def devices() -> list[str]:
    """Names of the devices of this host. Raises ConfigError naming what is missing."""
    if MISSING:
        raise ConfigError(MISSING)
    try:
        names = [device.name.decode() for device in get_device_list()]
    except PyverbsRDMAError:
        names = []
    if not names:
        raise ConfigError("no RDMA device found (ibv_devices shows them; is the card's driver, or rdma_rxe, loaded?)")
    return names


def open_devices(wanted: Sequence[str] = (), gid_index: int = -1) -> list[VerbsDevice]:
    """The devices named, or all of this host with an active port. gid_index: -1 lets us choose. Raises ConfigError."""
    if wanted:
        return [VerbsDevice(name, gid_index) for name in wanted]
    opened, refused = [], []
    for name in devices():
        try:
            opened.append(VerbsDevice(name, gid_index))
        except ConfigError as error:
            refused.append(error.message)
    if not opened:
        raise ConfigError("; ".join(refused))
    return opened


class VerbsDevice(Device):
    """One port of a device."""

    def __init__(self, name: str, gid_index: int = -1) -> None:
        """Raises ConfigError where it cannot be used, saying why."""
        self.name = name
        if MISSING:
            raise ConfigError(MISSING)
        try:
            self._context = Context(name=name)
            port = self._context.query_port(_PORT)
        except PyverbsRDMAError as error:
            raise ConfigError(f"RDMA device {name} cannot be opened: {error}") from None
        if port.state != verbs.IBV_PORT_ACTIVE:
            raise ConfigError(f"port {_PORT} of RDMA device {name} is not active (see `ibstat` or `rdma link`)")
        self.mtu: int = port.active_mtu
        self.lid: int = port.lid
        self.gid_index = self._choose_gid(gid_index)
        self.gid: str = self._context.query_gid(_PORT, self.gid_index).gid
        self._domain = PD(self._context)

    def _choose_gid(self, wanted: int) -> int:
        """RoCE v2 over IPv4 where there is one, else RoCE v2, else the first."""
        if wanted >= 0:
            return wanted
        best, found = -1, 0
        for index in range(_GIDS_MAX):
            try:
                text = str(self._context.query_gid(_PORT, index).gid)
                kind = self._context.query_gid_type(_PORT, index)
            except PyverbsRDMAError:
                break
            if not text.replace("0", "").replace(":", ""):
                continue  # an empty place in the table
            rank = 2 * (kind == verbs.IBV_GID_TYPE_SYSFS_ROCE_V2) + (_OF_IPV4 in text)
            if rank > best:
                best, found = rank, index
        return found

    def allocate(self, size: int) -> VerbsRegion:
        return VerbsRegion(self._domain, mmap.mmap(-1, size))

    def register(self, memory: Any) -> VerbsRegion:
        return VerbsRegion(self._domain, memory)

    def queue_pair(self, ours: Limits, receives: int, fd: int) -> VerbsQueuePair:
        try:
            return VerbsQueuePair(self, self._context, self._domain, ours, receives, fd)
        except PyverbsRDMAError as error:
            raise ConfigError(f"RDMA device {self.name}: no queue pair: {error}") from None


class VerbsRegion(Region):
    def __init__(self, domain: Any, memory: Any) -> None:
        self.view = memoryview(memory).cast("B")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.view))
        access = 0
        for name in _ACCESS_OF_REGION:
            access |= getattr(verbs, name)
        try:
            self._registered = MR(domain, len(self.view), access, address=self.address)
        except PyverbsRDMAError as error:
            raise ConfigError(
                f"{len(self.view) >> 20} MiB cannot be registered for RDMA: {error} (is the memlock limit large enough? "
                "`ulimit -l`, LimitMEMLOCK= in the unit)"
            ) from None
        self.key = self._registered.rkey
        self.local_key = self._registered.lkey

    def close(self) -> None:
        self._registered.close()


class VerbsQueuePair(QueuePair):
    """A reliable connected queue pair with its own completion queue and buffers."""

    def __init__(self, device: VerbsDevice, context: Any, domain: Any, ours: Limits, receives: int, fd: int) -> None:
        self._device = device
        self._sends = ours.sends
        before = _event_fds()
        self._channel = CompChannel(context)
        self._fd = self._channel.fd if hasattr(self._channel, "fd") else (_event_fds() - before).pop()
        os.set_blocking(self._fd, False)
        self._epoll = select.epoll(2)  # one descriptor to wait for both
        self._epoll.register(self._fd, select.EPOLLIN)
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        self._queue = CQ(context, ours.depth + receives + 1, None, self._channel, 0)
        self._queue.req_notify()
        self._buffers = VerbsRegion(domain, mmap.mmap(-1, (ours.sends + receives) * MESSAGE_SIZE))
        capacities = QPCap(
            max_send_wr=ours.depth, max_recv_wr=receives, max_send_sge=1, max_recv_sge=1, max_inline_data=INLINE_MAX
        )
        init = QPInitAttr(qp_type=verbs.IBV_QPT_RC, scq=self._queue, rcq=self._queue, sq_sig_all=0, cap=capacities)
        self._pair = QP(domain, init)
        self._pair.to_init(self._attributes())  # receives can be posted from here on
        self._destroyed = False
        self.ends = Ends(self._pair.qp_num, secrets.randbits(24), device.gid, device.mtu, device.lid)

    @staticmethod
    def _attributes() -> Any:
        attributes = QPAttr()
        attributes.port_num = _PORT
        attributes.pkey_index = 0
        attributes.qp_access_flags = (
            verbs.IBV_ACCESS_REMOTE_WRITE | verbs.IBV_ACCESS_REMOTE_READ | verbs.IBV_ACCESS_LOCAL_WRITE
        )
        return attributes

    def connect(self, peer: Ends) -> None:
        attributes = self._attributes()
        route = GlobalRoute(dgid=Gid(peer.gid), sgid_index=self._device.gid_index, hop_limit=64)
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=_PORT, dlid=peer.lid)
        attributes.path_mtu = min(self._device.mtu, peer.mtu)
        attributes.dest_qp_num = peer.number
        attributes.rq_psn = peer.sequence
        attributes.sq_psn = self.ends.sequence
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = _READS_MAX
        attributes.min_rnr_timer = _RNR_TIMER
        attributes.timeout = _TIMEOUT
        attributes.retry_cnt = _RETRIES
        attributes.rnr_retry = _RETRIES
        try:
            self._pair.to_rts(attributes)
        except PyverbsRDMAError as error:
            raise OSError(errno.EIO, f"queue pair cannot be connected: {error}") from None

    def received(self, index: int, length: int) -> memoryview:
        at = (self._sends + index) * MESSAGE_SIZE
        return self._buffers.view[at : at + length]

    def sending(self, index: int) -> memoryview:
        return self._buffers.view[index * MESSAGE_SIZE : (index + 1) * MESSAGE_SIZE]

    def post_receive(self, index: int) -> None:
        address = self._buffers.address + (self._sends + index) * MESSAGE_SIZE
        segment = SGE(address, MESSAGE_SIZE, self._buffers.local_key)
        self._posted("post_recv", RecvWR(wr_id=index, num_sge=1, sg=[segment]))

    def post_message(self, post: Post, length: int) -> None:
        flags = verbs.IBV_SEND_SIGNALED if post.signaled else 0
        if length <= INLINE_MAX:
            flags |= verbs.IBV_SEND_INLINE
        # An empty message has a byte all the same: pyverbs wants a segment, and no length means 2 GiB to some devices.
        address = self._buffers.address + max(post.buffer, 0) * MESSAGE_SIZE
        request = SendWR(
            wr_id=_SEND | post.number,
            opcode=verbs.IBV_WR_SEND_WITH_IMM,
            send_flags=flags,
            num_sge=1,
            sg=[SGE(address, max(length, 1), self._buffers.local_key)],
            imm_data=post.immediate | (0 if length else _EMPTY),
        )
        self._posted("post_send", request)

    def post_transfer(self, post: Post, region: Region, offset: int, remote: Remote) -> None:
        assert isinstance(region, VerbsRegion) and offset + remote.length <= len(region.view)
        request = SendWR(
            wr_id=_SEND | post.number,
            opcode=verbs.IBV_WR_RDMA_READ if post.work is Work.READ else verbs.IBV_WR_RDMA_WRITE,
            send_flags=verbs.IBV_SEND_SIGNALED if post.signaled else 0,
            num_sge=1,
            sg=[SGE(region.address + offset, remote.length, region.local_key)],
        )
        request.set_wr_rdma(remote.key, remote.address)
        self._posted("post_send", request)

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
                self._channel.get_cq_event(self._queue)
                self._queue.ack_events(1)
        except PyverbsRDMAError as error:
            if error.error_code != errno.EAGAIN:
                raise OSError(errno.EIO, f"completion channel: {error}") from None
        self._queue.req_notify()

    def poll(self) -> list[Completion]:
        if self._destroyed:
            raise OSError(errno.ENOTCONN, "the queue pair is destroyed")
        count, found = self._queue.poll(_POLLED_MAX)
        return [self._completion(entry) for entry in found] if count else []

    def _completion(self, entry: Any) -> Completion:
        receive = not entry.wr_id & _SEND
        error = ""
        if entry.status != verbs.IBV_WC_SUCCESS:
            error = f"work completion status {entry.status}"
        immediate = entry.imm_data if receive and not error else 0
        length = 0 if immediate & _EMPTY else entry.byte_len
        return Completion(receive, entry.wr_id & ~_SEND, length, immediate & ~_EMPTY, error)

    def destroy(self) -> None:
        if self._destroyed:
            return
        self._destroyed = True
        trio.lowlevel.notify_closing(self._epoll.fileno())
        self._epoll.close()
        for each in (self._pair, self._buffers, self._queue, self._channel):
            each.close()


_EMPTY = 1 << 31
"""In the immediate value: the message has no content."""
_SEND = 1 << 62
"""In the id of a work request: it is no receive."""


def _event_fds() -> set[int]:
    """Descriptors of completion channels; pyverbs tells of its own only from rdma-core 57 on."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
        except OSError:
            continue  # the descriptor of the listing itself
    return found
