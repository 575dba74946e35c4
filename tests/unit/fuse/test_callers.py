from fs3.api.meta import Caller
from fuse.callers import GROUPS_KEPT_S, Callers


class Processes:
    def __init__(self) -> None:
        self.now = 0.0
        self.reads = 0
        self.groups: dict[int, tuple[int, ...]] = {100: (7, 1000, 9)}
        self.callers = Callers(lambda: self.now, self.read)

    def read(self, pid: int) -> tuple[int, ...]:
        self.reads += 1
        if pid not in self.groups:
            raise FileNotFoundError
        return self.groups[pid]


def test_all_groups_of_a_process_count_its_own_first() -> None:
    processes = Processes()
    assert processes.callers.caller(1000, 1000, 100, 0o22) == Caller(1000, 1000, (1000, 7, 9), 0o22)


def test_groups_are_read_again_after_a_moment() -> None:
    processes = Processes()
    for _ in range(3):
        processes.callers.caller(1000, 1000, 100, 0)
    assert processes.reads == 1
    processes.now += GROUPS_KEPT_S
    processes.groups[100] = (8,)
    assert processes.callers.caller(1000, 1000, 100, 0).groups == (1000, 8)


def test_another_user_of_the_same_process_is_another_caller() -> None:
    processes = Processes()
    processes.callers.caller(1000, 1000, 100, 0)
    processes.groups[100] = (5,)
    assert processes.callers.caller(2000, 1000, 100, 0).groups == (1000, 5)


def test_root_costs_nothing_and_a_process_that_is_gone_has_its_group() -> None:
    processes = Processes()
    assert processes.callers.caller(0, 0, 100, 0) == Caller(0, 0, (0,), 0)
    assert processes.reads == 0
    assert processes.callers.caller(5, 6, 4242, 0).groups == (6,)
    assert processes.callers.caller(5, 6, 0, 0).groups == (6,)
