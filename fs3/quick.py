"""Frozen dataclasses that are made as fast as plain ones. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def quick(cls: type[T]) -> type[T]:
    """A decorator for a frozen dataclass with slots, of which many are made.

    The __init__ of a frozen dataclass sets each field by a call, past its own __setattr__, which takes most of its time.
    This one sets them while the new object still is of a twin class of the same layout, whose fields are plain.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in fields]
    assert cls.__bases__ == (object,) and list(getattr(cls, "__slots__", ())) == names, cls
    assert not hasattr(cls, "__post_init__") and all(field.init and not field.kw_only for field in fields), cls
    twin = type(cls.__name__, (), {"__slots__": tuple(names)})
    scope: dict[str, Any] = {"_set": object.__setattr__, "_twin": twin, "_cls": cls}
    parameters = []
    for field in fields:
        assert field.default_factory is dataclasses.MISSING, field
        if field.default is dataclasses.MISSING:
            parameters.append(field.name)
        else:
            scope[f"_default_{field.name}"] = field.default
            parameters.append(f"{field.name}=_default_{field.name}")
    assignments = "".join([f"    self.{name} = {name}\n" for name in names])
    source = (
        f"def __init__(self, {', '.join(parameters)}):\n"
        f"    _set(self, '__class__', _twin)\n{assignments}    self.__class__ = _cls\n"
    )
    copies = "".join([f"    new.{name} = old.{name}\n" for name in names])
    source += (
        f"def _changed(old, changes):\n    new = _new(_twin)\n{copies}"
        f"    for name, value in changes.items():\n        setattr(new, name, value)\n"
        f"    new.__class__ = _cls\n    return new\n"
    )
    scope["_new"] = object.__new__
    exec(source, scope)
    cls.__init__ = scope["__init__"]  # type: ignore[method-assign]
    _changers[cls] = scope["_changed"]
    return cls


_changers: dict[type[Any], Callable[[Any, dict[str, Any]], Any]] = {}


def changed(old: T, **changes: Any) -> T:
    """As dataclasses.replace, for an instance of a class that `quick` was applied to; takes a fifth of the time."""
    result: T = _changers[type(old)](old, changes)
    return result
