"""What operators do to single targets: give up a chain, begin it anew, empty and fill."""

from __future__ import annotations

from fs3.api.admin import TargetAction, TargetActionRequest
from fs3.routing import PublicState
from mgmtd.draft import Draft
from mgmtd.tables import act_on_target

from .test_operations import Daemons, refused


def act(daemons: Daemons, target: int, action: TargetAction, *, version: int = 0, chain: int = 0) -> None:
    draft = Draft(daemons.cluster.state)
    act_on_target(draft, TargetActionRequest(target, action, version, chain))
    daemons.do(draft.done())


def lose(daemons: Daemons, *nodes: int) -> None:
    """They die, one after the other."""
    for node in nodes:
        daemons.stop(node)


def test_another_one_serves_where_the_last_is_given_up() -> None:
    daemons = Daemons()
    lose(daemons, 3, 2, 1)
    assert daemons.chain().state_of(10) is PublicState.LASTSRV
    with refused("target 20 is offline: name one of chain 1 that is alive"):
        act(daemons, 20, TargetAction.GIVE_UP)
    daemons.start_again(2)
    with refused("chain 1 is at version [0-9]+ now, not 1: look at it again"):
        act(daemons, 20, TargetAction.GIVE_UP, version=1)
    act(daemons, 20, TargetAction.GIVE_UP, version=daemons.chain().version)
    assert daemons.serving() == [20]
    daemons.start_again(1)
    daemons.rest()
    assert daemons.serving() == [20, 10], "it is filled by the one that serves now"


def test_a_chain_of_which_nothing_is_left_begins_anew() -> None:
    daemons = Daemons()
    with refused("chain 1 is served, by target 10"):
        act(daemons, 40, TargetAction.GIVE_UP, chain=1)
    lose(daemons, 3, 2, 1)
    daemons.start_again(3)
    with refused("target 30 of chain 1 is alive, or not heard of yet"):
        act(daemons, 40, TargetAction.GIVE_UP, chain=1)
    lose(daemons, 3)
    with refused("there is no chain 9"):
        act(daemons, 40, TargetAction.GIVE_UP, chain=9)
    version = daemons.chain().version
    act(daemons, 40, TargetAction.GIVE_UP, version=version, chain=1)
    assert daemons.serving() == [40] and daemons.target(40).chain == 1 and daemons.chain().version > version
    daemons.start_again(1)
    daemons.rest()
    assert daemons.serving() == [40, 10], "what was lost is filled with what there is now, if it comes back"
