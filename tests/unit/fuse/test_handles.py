from hypothesis import given
from hypothesis import strategies as st

from fuse.handles import NAMES_MAX, HandleTable, InodeTable, OpenNames

A, B = (1, b"a"), (1, b"b")


def test_an_inode_is_known_until_all_lookups_are_given_back() -> None:
    table = InodeTable()
    table.told(5, A)
    table.told(5, B)
    known = table.get(5)
    assert known is not None and (known.lookups, known.names) == (2, (A, B))
    assert not table.forget(5, 1)
    assert table.forget(5, 1)
    assert table.get(5) is None


def test_forgetting_the_root_is_harmless() -> None:
    assert not InodeTable().forget(1, 3)


@given(st.lists(st.tuples(st.integers(2, 4), st.integers(0, 3))))
def test_lookup_counts_never_drift(steps: list[tuple[int, int]]) -> None:
    table = InodeTable()
    counts = {2: 0, 3: 0, 4: 0}
    for inode, forget in steps:
        if forget and counts[inode] >= forget:
            counts[inode] -= forget
            assert table.forget(inode, forget) == (counts[inode] == 0)
        else:
            counts[inode] += 1
            table.told(inode, None)
        assert {i: k.lookups for i in counts if (k := table.get(i))} == {i: n for i, n in counts.items() if n}


def test_handle_numbers_are_not_used_again() -> None:
    table: HandleTable[str] = HandleTable()
    first = table.add("x")
    assert table.pop(first) == "x"
    second = table.add("y")
    assert second != first and table.get(second) == "y" and table.values() == ["y"]


def test_the_name_of_an_open_file_is_known_as_such() -> None:
    names = OpenNames()
    names.opened(5, [A], links=1)
    assert names.may_be_open(A) and not names.may_be_open(B)
    names.closed(5)
    assert not names.may_be_open(A)


def test_a_rename_moves_the_name_and_takes_over_another() -> None:
    names = OpenNames()
    names.opened(5, [A], links=1)
    names.opened(6, [B], links=1)
    names.renamed(A, B)
    assert not names.may_be_open(A) and names.may_be_open(B)
    names.closed(6)
    assert names.may_be_open(B), "B is now the name of 5"


def test_a_file_with_unknown_links_makes_every_name_suspect() -> None:
    names = OpenNames()
    names.opened(5, [A], links=2)
    assert names.may_be_open(B)
    names.closed(5)
    assert not names.may_be_open(B)


def test_a_name_seen_for_an_open_file_counts() -> None:
    names = OpenNames()
    names.opened(5, [A], links=1)
    names.seen(5, B, links=1)
    assert names.may_be_open(B)
    names.seen(7, B, links=1)
    assert not names.may_be_open(B), "B stands for another file now"


def test_a_name_of_two_files_is_kept_while_either_is_open() -> None:
    """Another mount has changed what A stands for: one of both is out of date."""
    names = OpenNames()
    names.opened(5, [A], links=1)
    names.opened(6, [A], links=1)
    names.closed(5)
    assert names.may_be_open(A)
    names.renamed(A, B)
    names.closed(6)
    assert not names.may_be_open(A) and not names.may_be_open(B)


def test_all_names_of_an_inode_are_known_or_that_there_are_more() -> None:
    table = InodeTable()
    known = table.told(5, A)
    table.told(5, B)
    table.told(5, B)
    known.drop(A)
    assert (known.names, known.more) == ((B,), False)
    for number in range(NAMES_MAX):
        table.told(5, (1, b"%d" % number))
    assert len(known.names) == NAMES_MAX and known.more
    names = OpenNames()
    names.opened(5, known.names, 1, known.more)
    assert names.may_be_open(A), "who knows"
