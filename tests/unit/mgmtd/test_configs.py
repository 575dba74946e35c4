from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fs3.api.admin import ConfigVersion, SetConfigRequest, Setting
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.settings import KINDS
from mgmtd import configs
from mgmtd.configs import Configs


def request(kind: str = "storage", *unset: str, base: int = -1, **values: str) -> SetConfigRequest:
    return SetConfigRequest(kind, tuple([Setting(*item) for item in values.items()]), unset, base, "ann@host", "why not")


def put(store: Configs, wanted: SetConfigRequest, now_ms: int = 1000) -> ConfigVersion:
    version, changes = store.set(wanted, now_ms)
    store.apply(changes)
    return version


def values(version: ConfigVersion) -> dict[str, str]:
    return {setting.key: setting.value for setting in version.settings}


def test_nothing_is_set_at_first() -> None:
    store = Configs()
    assert store.latest("meta") == store.get("meta", 0) == ConfigVersion("meta", 0, ())
    assert not store.history("meta", 10) and store.latest_of(NodeKind.META) == 0


def test_each_change_makes_a_version_of_its_kind() -> None:
    store = Configs()
    first = put(store, request(log_level="debug", reserve_bytes="1048576"), 5)
    assert first == ConfigVersion(
        "storage", 1, (Setting("log_level", "debug"), Setting("reserve_bytes", "1MiB")), 5, "ann@host", "why not"
    )
    second = put(store, request("storage", "log_level", scrub_rate_bytes="1KiB"))
    assert values(second) == {"reserve_bytes": "1MiB", "scrub_rate_bytes": "1KiB"}
    assert store.history("storage", 10) == [second, first] and store.history("storage", 1) == [second]
    assert store.get("storage", 1) == first
    assert (store.latest_of(NodeKind.STORAGE), store.latest_of(NodeKind.META)) == (2, 0)


def test_what_changes_nothing_makes_no_version_so_that_a_request_may_be_repeated() -> None:
    store = Configs()
    wanted = request(base=0, log_level="debug")
    assert put(store, wanted).version == put(store, wanted).version == 1
    assert put(store, request("storage", "log_level", base=1)).version == 2
    assert put(store, request("storage", "log_level", base=1)).version == 2


def test_one_who_knows_an_older_version_is_refused() -> None:
    store = Configs()
    put(store, request(log_level="debug"))
    with pytest.raises(FS3Error, match=r"version 0 was changed meanwhile, 1 is the latest \(set by ann@host\)") as caught:
        store.set(request(base=0, log_level="error"), 0)
    assert caught.value.code is Code.CONFIG_CHANGED and not caught.value.retryable


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (request("cache"), "no kind of daemon is called 'cache'"),
        (request(node_id="7"), "'node_id' cannot be changed while running: it says which daemon this is; set it in"),
        (request(log_level="debug", reserve="1"), "unknown key 'reserve', did you mean 'reserve_bytes'?"),
        (request("storage", "reserve"), "unknown key 'reserve', did you mean 'reserve_bytes'?"),
        (request("storage", "log_level", log_level="info"), "'log_level' is given twice"),
    ],
)
def test_a_request_that_is_refused_changes_nothing(wanted: SetConfigRequest, error: str) -> None:
    store = Configs()
    with pytest.raises(FS3Error) as caught:
        store.set(wanted, 0)
    assert caught.value.code is Code.CONFIG and error in caught.value.message
    assert store.latest("storage").version == 0


def test_a_key_that_another_release_had_can_be_unset() -> None:
    store = Configs([ConfigVersion("meta", 4, (Setting("of_old", "1"), Setting("log_level", "debug")))])
    assert values(put(store, request("meta", "of_old"))) == {"log_level": "debug"}


def test_a_version_that_is_not_kept_is_said_so() -> None:
    store = Configs([ConfigVersion("meta", 4, ()), ConfigVersion("meta", 5, ())])
    with pytest.raises(FS3Error, match=r"meta: version 3 is not kept \(4 to 5 are\)"):
        store.get("meta", 3)
    with pytest.raises(FS3Error, match=r"version 1 is not kept \(nothing was ever set\)"):
        store.get("client", 1)


class Versions(RuleBasedStateMachine):
    """Against a list of all that was ever set."""

    kept = 4

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(configs, "HISTORY_MAX", self.kept)
        self.store = Configs()
        self.stored: dict[tuple[str, int], ConfigVersion] = {}
        self.model: dict[str, list[dict[str, str]]] = {kind: [{}] for kind in KINDS}

    def teardown(self) -> None:
        self.patch.undo()

    @rule(
        kind=st.sampled_from(["meta", "storage"]),
        put=st.dictionaries(st.sampled_from(["log_level"]), st.sampled_from(["info", "debug"])),
        drop=st.sampled_from([(), ("log_level",)]),
        behind=st.sampled_from([None, 0, 1]),
    )
    def change(self, kind: str, put: dict[str, str], drop: tuple[str, ...], behind: int | None) -> None:
        versions = self.model[kind]
        if behind is not None:
            behind = min(behind, len(versions) - 1)
        wanted = request(kind, *drop, base=-1 if behind is None else len(versions) - 1 - behind, **put)
        after = {key: value for key, value in versions[-1].items() if key not in drop} | put
        try:
            version, changes = self.store.set(wanted, 0)
        except FS3Error as error:
            assert (set(put) & set(drop)) if error.code is Code.CONFIG else (behind == 1 and after != versions[-1])
            return
        self.store.apply(changes)
        for key, value in changes.items():
            if value is None:
                del self.stored[key]
            else:
                self.stored[key] = value
        if after != versions[-1]:
            assert behind != 1
            versions.append(after)
        assert version.version == len(versions) - 1 and values(version) == after

    @rule()
    def restart(self) -> None:
        self.store = Configs(self.stored.values())

    @invariant()
    def the_newest_are_kept(self) -> None:
        for kind, versions in self.model.items():
            newest = list(enumerate(versions))[1:][-self.kept :]
            assert [(v.version, values(v)) for v in reversed(self.store.history(kind, 100))] == newest
            assert self.store.latest(kind).version == len(versions) - 1
        assert len(self.stored) == sum(min(self.kept, len(versions) - 1) for versions in self.model.values())


TestVersions: Any = Versions.TestCase
