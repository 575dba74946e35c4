"""What a mount knows of directories' attributes."""

from __future__ import annotations

from fs3.api.meta import Attr, FileKind
from fuse.folders import FOLDERS_MAX, Folders

FOLDER = 7


def attr(changed_ns: int, inode: int = FOLDER, kind: FileKind = FileKind.DIRECTORY) -> Attr:
    return Attr(inode, 0, kind, 0o755, 0, 0, 2, 0, 1, changed_ns, changed_ns)


def ask(folders: Folders, changed_ns: int, now: float) -> Attr:
    return folders.answered(folders.asking(FOLDER, now), attr(changed_ns))


def asked(changed_ns: int, now: float = 1.0) -> Folders:
    """One that knows FOLDER."""
    folders = Folders()
    ask(folders, changed_ns, now)
    ask(folders, changed_ns, now)
    return folders


def test_a_folder_is_known_from_its_second_question_on_and_for_a_while() -> None:
    folders = Folders()
    ask(folders, 100, 1.0)
    assert folders.known(FOLDER, 0.0) is None
    ask(folders, 100, 2.0)
    assert folders.known(FOLDER, 1.9) == (attr(100), 2.0)
    assert folders.known(FOLDER, 2.0) is None


def test_files_are_not_kept() -> None:
    folders = Folders()
    for _ in range(2):
        folders.answered(folders.asking(8, 1.0), attr(1, 8, FileKind.FILE))
    assert folders.known(8, 0.0) is None


def test_own_changes_move_the_times_and_do_not_make_it_younger() -> None:
    folders = asked(100)
    folders.changed(FOLDER, 150)
    folders.changed(FOLDER, 120)  # its reply came later
    assert folders.known(FOLDER, 0.0) == (attr(150), 1.0)
    assert folders.known(FOLDER, 1.0) is None


def test_an_answer_from_before_a_change_is_moved_on_and_a_later_one_is_not() -> None:
    folders = asked(100)
    ticket = folders.asking(FOLDER, 2.0)
    folders.changed(FOLDER, 150)
    assert folders.answered(ticket, attr(100)).ctime_ns == 150
    # Somebody set the clock back meanwhile: what meta says now counts.
    assert ask(folders, 90, 3.0).ctime_ns == 90
    assert folders.known(FOLDER, 2.5) == (attr(90), 3.0)


def test_answers_that_overtake_each_other_leave_the_younger_one() -> None:
    folders = asked(100)
    first, second = folders.asking(FOLDER, 2.0), folders.asking(FOLDER, 3.0)
    folders.answered(second, attr(200))
    folders.answered(first, attr(100))
    assert folders.known(FOLDER, 0.0) == (attr(200), 3.0)


def test_nothing_that_was_asked_before_a_doubt_counts() -> None:
    folders = asked(100)
    ticket = folders.asking(FOLDER, 2.0)
    folders.doubt(FOLDER)
    assert folders.known(FOLDER, 0.0) is None
    assert folders.answered(ticket, attr(100)) == attr(100)
    assert folders.known(FOLDER, 0.0) is None
    ask(folders, 110, 3.0)
    assert folders.known(FOLDER, 0.0) == (attr(110), 3.0)


def test_not_too_many_are_remembered() -> None:
    folders = asked(100)
    for inode in range(100, 100 + FOLDERS_MAX):
        folders.answered(folders.asking(inode, 2.0), attr(1, inode))
    assert folders.asking(FOLDER, 3.0) is None
