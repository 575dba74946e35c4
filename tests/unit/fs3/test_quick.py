"""Frozen dataclasses that are made quickly are what they were in all else."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass

import pytest

from fs3.quick import changed, quick


@quick
@dataclass(frozen=True, slots=True, order=True)
class Quick:
    first: int
    second: str = "two"
    third: tuple[int, ...] = (3,)


@dataclass(frozen=True, slots=True, order=True)
class Plain:
    first: int
    second: str = "two"
    third: tuple[int, ...] = (3,)


def test_positions_names_and_defaults() -> None:
    for cls in (Quick, Plain):
        made = cls(1)
        assert (type(made), made.first, made.second, made.third) == (cls, 1, "two", (3,))
        made = cls(1, third=(), second="x")
        assert dataclasses.astuple(made) == (1, "x", ())


@pytest.mark.parametrize("cls", [Quick, Plain])
def test_what_does_not_fit_is_refused(cls: type[Quick | Plain]) -> None:
    with pytest.raises(TypeError, match="first"):
        cls()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional arguments"):
        cls(1, "x", (), 4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="fourth"):
        cls(1, fourth=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", [Quick, Plain])
def test_it_stays_frozen_and_comparable(cls: type[Quick | Plain]) -> None:
    made = cls(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.first = 2  # type: ignore[misc]
    assert made == cls(1) and made != cls(2) and hash(made) == hash(cls(1)) and made < cls(2)  # type: ignore[operator]
    assert repr(made) == f"{cls.__name__}(first=1, second='two', third=(3,))"
    assert dataclasses.replace(made, first=5) == cls(5) and copy.copy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_only_plain_frozen_dataclasses_with_slots() -> None:
    @dataclass(frozen=True)
    class NoSlots:
        first: int

    with pytest.raises(AssertionError):
        quick(NoSlots)


def test_a_changed_copy_is_as_replace_makes_it() -> None:
    made = Quick(1)
    copied = changed(made, second="x", first=5)
    assert copied == dataclasses.replace(made, second="x", first=5) and type(copied) is Quick
    assert made == Quick(1) and changed(made) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        copied.first = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        changed(made, fourth=4)
