from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.errors import Code, FS3Error
from fs3.placement.chain_file import ChainFile, check_chains, parse, render, render_json
from fs3.placement.topology import domain_limit

from .cluster import routing


def refusal(wanted: Sequence[Sequence[int]], replicas: int, **cluster: Any) -> str:
    with pytest.raises(FS3Error) as caught:
        check_chains(wanted, replicas, routing([4] * 4, **cluster))
    assert caught.value.code is Code.BAD_PLACEMENT
    return caught.value.message


def unreadable(text: str) -> str:
    with pytest.raises(FS3Error) as caught:
        parse(text)
    assert caught.value.code is Code.BAD_PLACEMENT
    return caught.value.message


def test_good_chains_pass() -> None:
    check_chains([(1000, 2000, 3000), (4000, 1001, 2001)], 3, routing([4] * 4))
    check_chains([(1000, 3000)], 2, routing([4] * 4, racks="aabb"))


@pytest.mark.parametrize(
    ("chains", "replicas", "message"),
    [
        ([], 1, "there is no chain in it"),
        ([(1000,)], 0, "0 replicas: at least 1 is needed"),
        ([(1000, 2000), (1001,)], 2, "chain 2 has 1 targets (1001): expected 2"),
        ([(1000, 9000)], 2, "chain 1: there is no target 9000 in this cluster"),
        ([(1000, 1000)], 2, "chain 1: target 1000 is twice in it"),
        ([(1000, 2000), (3000, 1000)], 2, "chain 2: target 1000 is in chain 1 already"),
        ([(1000, 1001)], 2, "chain 1: targets (1000, 1001) are on the same node 1"),
    ],
)
def test_bad_chains_are_refused(chains: list[tuple[int, ...]], replicas: int, message: str) -> None:
    assert refusal(chains, replicas).startswith(message)


def test_targets_that_cannot_be_had_are_refused() -> None:
    assert "target 1000 is in chain 1 already" in refusal([(1000, 3000)], 2, chains=[(1000, 2000)])
    assert "target 1000 has left its chain and is not emptied" in refusal([(1000, 3000)], 2, retired=[1000])
    assert "node 1, which is not alive" in refusal([(1000, 3000)], 2, dead=[1])
    assert "node 3, which is drained" in refusal([(1000, 3000)], 2, drained=[3])
    holding = routing([4] * 4)
    targets = {**holding.targets, 1000: replace(holding.targets[1000], used=7)}
    with pytest.raises(FS3Error, match="target 1000 holds 7 bytes of a former time; empty it first"):
        check_chains([(1000, 3000)], 2, replace(holding, targets=targets))
    assert "target 3000 of node 3 is offline" in refusal([(1000, 3000)], 2, offline=[3000])


def test_racks_are_kept_apart_as_far_as_there_are_enough() -> None:
    assert "targets (1000, 2000) are in the same rack a; at most 1" in refusal([(1000, 2000)], 2, racks="aabb")
    check_chains([(1000, 2000, 3000)], 3, routing([4] * 4, racks="aabb"))
    assert "targets (1000, 2000, 3000) are in the same rack a; at most 2" in refusal([(1000, 2000, 3000)], 3, racks="aaab")


@pytest.mark.parametrize(
    ("racks", "replicas", "limit"),
    [("abc", 3, 1), ("aabb", 3, 2), ("abbbbb", 4, 3), ("a", 1, 1), ("ab", 4, 4), ("aabbcc", 3, 1)],
)
def test_domain_limit(racks: str, replicas: int, limit: int) -> None:
    assert domain_limit(racks, replicas) == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a chain file: Expecting property name"),
        ("chains = [[1, 2]", "not a chain file: Unclosed array"),
        ("", "the chain file has no chains"),
        ('{"chains": [[1, "2"]]}', "chain 1 of the chain file is [1, '2']: expected a list of target ids"),
        ("chains = [[true]]", "chain 1 of the chain file is [True]"),
        ("chains = [[1, 2], [3]]", "chain 2 of the chain file has 1 targets (3): expected 2"),
        ("replicas = 0\nchains = [[1]]", "replicas is 0"),
        ("replica = 2\nchains = [[1, 2]]", "unknown key 'replica'"),
    ],
)
def test_files_that_are_none(text: str, message: str) -> None:
    assert unreadable(text).startswith(message)


def test_replicas_may_be_left_out() -> None:
    assert parse("chains = [[1, 2], [3, 4]]") == ChainFile(2, ((1, 2), (3, 4)))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.integers(1, 1 << 40)] * n), min_size=1, max_size=5)))
def test_what_is_rendered_is_read(chains: list[tuple[int, ...]]) -> None:
    found = ChainFile(len(chains[0]), tuple(chains))
    assert parse(render(found, "two\nlines")) == parse(render_json(found)) == found
