"""The central configuration: versions of the settings of each kind of daemon. Pure.

A version is never changed. What is set is checked here; nodes check it once more, since they may be of another release.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fs3.api.admin import ConfigVersion, SetConfigRequest, Setting
from fs3.errors import Code, ConfigError, FS3Error
from fs3.ids import NodeKind
from fs3.settings import KINDS, checked, hot_option, kind_of, name_of

HISTORY_MAX = 100
"""Versions of a kind that are kept."""
TEXT_MAX = 400
"""Characters of who set something and why that are kept."""

Changes = Mapping[tuple[str, int], ConfigVersion | None]
"""By kind and version; None for one that is dropped."""


class Configs:
    """All versions that are kept. Changed by apply() alone."""

    def __init__(self, saved: Iterable[ConfigVersion] = ()) -> None:
        self._versions: dict[str, list[ConfigVersion]] = {kind: [] for kind in KINDS}  # oldest first
        for version in sorted(saved, key=lambda version: version.version):
            self._versions.setdefault(version.kind, []).append(version)
        self._latest = {kind: versions[-1].version if versions else 0 for kind, versions in self._versions.items()}

    def latest_of(self, kind: NodeKind) -> int:
        """The number of the latest version, as heartbeats tell it; 0 before the first."""
        return self._latest[name_of(kind)]

    def latest(self, kind: str) -> ConfigVersion:
        """The latest version; one without settings, of number 0, before the first. Raises CONFIG for a kind that is none."""
        versions = self._versions[kind_of(kind).name]
        return versions[-1] if versions else ConfigVersion(kind, 0, ())

    def get(self, kind: str, version: int) -> ConfigVersion:
        """version: 0 for the latest. Raises CONFIG where it is not kept."""
        latest = self.latest(kind)
        if version in (0, latest.version):
            return latest
        found = [each for each in self._versions[kind] if each.version == version]
        if not found:
            first = self._versions[kind][0].version if self._versions[kind] else 0
            there = f"{first} to {latest.version} are" if latest.version else "nothing was ever set"
            raise ConfigError(f"{kind}: version {version} is not kept ({there})")
        return found[0]

    def history(self, kind: str, limit: int) -> Sequence[ConfigVersion]:
        """The newest first. Raises CONFIG."""
        versions = self._versions[kind_of(kind).name]
        return versions[: -max(1, limit) - 1 : -1]

    def set(self, request: SetConfigRequest, now_ms: int) -> tuple[ConfigVersion, Changes]:
        """The version that a request leads to, and what changes: nothing where all is as wanted already, so that a request
        may be repeated. Raises CONFIG, CONFIG_CHANGED."""
        latest = self.latest(request.kind)
        after = _changed(request, latest)
        if after == {setting.key: setting.value for setting in latest.settings}:
            return latest, {}
        if request.base_version not in (-1, latest.version):
            who = f" by {latest.by}" if latest.by else ""
            raise FS3Error(
                Code.CONFIG_CHANGED,
                f"{request.kind}: version {request.base_version} was changed meanwhile, {latest.version} is the latest"
                f" (set{who}): look at it (config history {request.kind}) and set again",
            )
        settings = tuple([Setting(key, value) for key, value in sorted(after.items())])
        by, comment = request.by[:TEXT_MAX], request.comment[:TEXT_MAX]
        made = ConfigVersion(request.kind, latest.version + 1, settings, now_ms, by, comment)
        changes: dict[tuple[str, int], ConfigVersion | None] = {(made.kind, made.version): made}
        for old in self._versions[made.kind][: 1 - HISTORY_MAX]:
            changes[old.kind, old.version] = None
        return made, changes

    def apply(self, changes: Changes) -> None:
        """Take in what was committed."""
        for (kind, number), version in changes.items():
            if version is None:
                self._versions[kind] = [each for each in self._versions[kind] if each.version != number]
            else:
                assert number == self._latest[kind] + 1, (kind, number, self._latest)
                self._versions[kind].append(version)
                self._latest[kind] = number


def _changed(request: SetConfigRequest, latest: ConfigVersion) -> dict[str, str]:
    """The settings after a request. Raises CONFIG."""
    kind = kind_of(request.kind)
    after = {setting.key: setting.value for setting in latest.settings}
    named = [setting.key for setting in request.settings] + list(request.unset)
    twice = {key for key in named if named.count(key) > 1}
    if twice:
        raise ConfigError(f"{kind.name}: '{min(twice)}' is given twice")
    for setting in request.settings:
        after[setting.key] = checked(kind, setting.key, setting.value)
    for key in request.unset:
        if after.pop(key, None) is None:
            hot_option(kind, key)  # one that could be set, and is not: nothing to do
    return after
