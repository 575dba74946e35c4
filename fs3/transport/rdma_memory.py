"""Registered memory of a process: a pool of slots, and what users registered. Registering is slow, so it is done once."""

from __future__ import annotations

import logging
from bisect import bisect_right, insort
from collections.abc import Callable
from typing import Any

from ..errors import Code, ConfigError, FS3Error
from ..wire.frame import PAYLOAD_SIZE_MAX
from .rdma_port import Device, Region, Remote
from .slots import Slots

logger = logging.getLogger("fs3.transport.rdma")

SLOT_SIZE_MIN = 16 * 1024


class Slot:
    """A part of registered memory that somebody uses: its holder, and each transfer that the device may still be at. It is
    free again when the last of them has let go."""

    __slots__ = ("_free", "length", "offset", "region", "users")

    def __init__(self, region: Region, offset: int, length: int, free: Callable[[], None]) -> None:
        self.region = region
        self.offset = offset
        self.length = length
        self.users = 1
        self._free = free

    @property
    def view(self) -> memoryview:
        return self.region.view[self.offset : self.offset + self.length]

    @property
    def remote(self) -> Remote:
        return Remote(self.region.address + self.offset, self.length, self.region.key)

    def keep(self) -> None:
        assert self.users > 0
        self.users += 1

    def release(self) -> None:
        assert self.users > 0
        self.users -= 1
        if self.users == 0:
            self._free()


class UserRegion:
    """Memory that a user registered. It stays registered while a peer may still read or write it for a request that is under
    way, also after the user had it forgotten."""

    __slots__ = ("forgotten", "region", "times", "users")

    def __init__(self, region: Region) -> None:
        self.region = region
        self.users = 0
        self.times = 0  # it is registered
        self.forgotten = False

    def keep(self) -> None:
        self.users += 1

    def release(self) -> None:
        assert self.users > 0
        self.users -= 1
        if self.users == 0 and self.forgotten:
            self.region.close()


class RegisteredMemory:
    """Of one device, for all its connections. size_max: of the pool, in bytes, which is registered by regions."""

    def __init__(self, device: Device, size_max: int, region_size: int = PAYLOAD_SIZE_MAX) -> None:
        self.device = device
        self._region_size = region_size
        self._regions_max = max(1, size_max // region_size)
        self._pool: list[tuple[Region, Slots]] = []
        self._places: list[tuple[int, int]] = []  # address, length of what users registered, sorted
        self._users: dict[tuple[int, int], UserRegion] = {}

    @property
    def taken(self) -> int:
        """Slots in use."""
        return sum([slots.taken for _, slots in self._pool])

    def take(self, length: int) -> Slot | None:
        """None where there is none left, or it is too long for one."""
        if length > self._region_size:
            return None
        for region, slots in self._pool:
            offset = slots.take(length)
            if offset is not None:
                return self._slot(region, slots, offset, length)
        if len(self._pool) >= self._regions_max:
            return None
        try:
            region = self.device.allocate(self._region_size)
        except ConfigError as error:
            logger.warning("%s: no more memory for RDMA: %s", self.device.name, error.message)
            self._regions_max = len(self._pool)  # what there is has to do
            return None
        slots = Slots(self._region_size, SLOT_SIZE_MIN, self._region_size)
        self._pool.append((region, slots))
        offset = slots.take(length)
        assert offset is not None
        return self._slot(region, slots, offset, length)

    def _slot(self, region: Region, slots: Slots, offset: int, length: int) -> Slot:
        return self.make(region, offset, length, lambda: slots.give_back(offset, length))

    def make(self, region: Region, offset: int, length: int, free: Callable[[], None]) -> Slot:
        """For those who watch slots."""
        return Slot(region, offset, length, free)

    def must_take(self, length: int) -> Slot:
        """As `take`; where the pool has none left, memory of its own. For those who must not wait: two servers whose
        requests serve each other's would wait for ever. Raises OVERLOADED."""
        slot = self.take(length)
        if slot is not None:
            return slot
        try:
            region = self.device.allocate(length)
        except ConfigError as error:
            raise FS3Error(Code.OVERLOADED, f"no memory for {length} bytes by RDMA: {error.message}") from None
        return self.make(region, 0, length, region.close)

    # Memory of users

    def register(self, memory: Any) -> Region:
        """Let transfers go straight to and from a writable buffer. Raises ConfigError."""
        view = memoryview(memory).cast("B")
        place = self.device.address_of(view), len(view)
        user = self._users.get(place)
        if user is None:
            user = self._users[place] = UserRegion(self.device.register(memory))
            insort(self._places, place)
        user.times += 1
        return user.region

    def forget(self, region: Region) -> None:
        """No further request uses it. Those under way do until they are settled; that they write nothing there any more once
        their calls have ended is the calls' affair (`withdraw`)."""
        place = region.address, len(region.view)
        user = self._users[place]
        user.times -= 1
        if user.times:
            return
        del self._users[place]
        self._places.remove(place)
        user.forgotten = True
        if user.users == 0:
            region.close()

    def find(self, view: memoryview) -> tuple[UserRegion, int] | None:
        """The user's region that holds all of a buffer, and the offset in it."""
        if not self._places or view.readonly or not len(view):
            return None
        address = self.device.address_of(view)
        at = bisect_right(self._places, (address, 1 << 63)) - 1
        while at >= 0:
            begin, length = place = self._places[at]
            if address + len(view) <= begin + length:
                return self._users[place], address - begin
            at -= 1  # a longer one may begin before it
        return None
