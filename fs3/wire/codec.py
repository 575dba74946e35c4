"""Dataclass <-> msgpack, strict and versioned. Pure.

A message is a frozen dataclass; on the wire it is a positional msgpack array of its fields. A reader ignores trailing
fields that it does not know and takes defaults for trailing ones that are missing, so neighbouring versions talk: new
fields are added at the end, with defaults. Field types: int, bool, str, bytes, float, IntEnum, dataclass, T | None,
tuple[T, ...], dict[int, T]. Bytes are checked against these types while decoding; anything else is a ProtocolError.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

import msgpack

from ..errors import ProtocolError

T = TypeVar("T")

_PRIMITIVES = {int: "int", bool: "bool", str: "str", bytes: "bytes", float: "float"}
_MISSING = dataclasses.MISSING


def encode(message: Any) -> bytes:
    """The bytes of a message."""
    packed: bytes = msgpack.packb(_codec(type(message))[0](message))
    return packed


def decode(cls: type[T], data: bytes | bytearray | memoryview) -> T:
    """The message of class `cls` in `data`. Raises ProtocolError where it holds anything else."""
    try:
        raw = msgpack.unpackb(data, use_list=False, strict_map_key=False, max_str_len=1 << 24, max_bin_len=1 << 26)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"{cls.__name__}: not msgpack: {error}") from None
    result: T = _codec(cls)[1](raw)
    return result


def to_wire(message: Any) -> list[Any]:
    """The array that stands for a message, to be packed as part of something else."""
    array: list[Any] = _codec(type(message))[0](message)
    return array


def from_wire(cls: type[T], raw: Any) -> T:
    """The inverse of to_wire. Raises ProtocolError."""
    result: T = _codec(cls)[1](raw)
    return result


_Codec = tuple[Callable[[Any], list[Any]], Callable[[Any], Any]]
_compiled: dict[type[Any], _Codec] = {}


def _codec(cls: type[Any]) -> _Codec:
    found = _compiled.get(cls)
    if found is None:
        found = _compiled[cls] = _compile(cls)
    return found


def _compile(cls: type[Any]) -> _Codec:
    """Make an encoder and a decoder for a dataclass: one Python function each, without loops over its fields."""
    assert dataclasses.is_dataclass(cls), cls
    hints = typing.get_type_hints(cls)
    fields = [(f.name, hints[f.name], f) for f in dataclasses.fields(cls)]
    scope: dict[str, Any] = {"_cls": cls, "_bad": _bad, "_dict": _decode_dict, "_enum": _decode_enum}
    encoded = ", ".join(_encode_expression(f"m.{name}", hint, scope) for name, hint, _ in fields)
    required = 0
    decode_lines: list[str] = []
    for position, (name, hint, field) in enumerate(fields):
        expression = _decode_expression(f"a[{position}]", hint, scope, f"{cls.__name__}.{name}")
        if field.default is _MISSING and field.default_factory is _MISSING:
            required = position + 1
            decode_lines.append(expression)
        else:
            scope[f"_d{position}"] = (
                field.default_factory if field.default_factory is not _MISSING else _constant(field.default)
            )
            decode_lines.append(f"({expression}) if n > {position} else _d{position}()")
    source = (
        f"def _encode(m):\n    return [{encoded}]\n"
        f"def _decode(a):\n"
        f"    if type(a) is not tuple and type(a) is not list: _bad(a, {cls.__name__!r})\n"
        f"    n = len(a)\n"
        f"    if n < {required}: _bad(a, {cls.__name__ + ' (too short)'!r})\n"
        f"{_construct([name for name, _, _ in fields], decode_lines, cls, scope)}"
    )
    exec(source, scope)
    return scope["_encode"], scope["_decode"]


def _construct(names: list[str], values: list[str], cls: type[Any], scope: dict[str, Any]) -> str:
    """The lines that make a message from the expressions of its fields.

    A frozen dataclass sets each field by a call in its __init__, which takes most of the time of decoding. So a twin of the
    same layout, whose fields are plain, is filled and then turned into the message.
    """
    plain = cls.__bases__ == (object,) and list(getattr(cls, "__slots__", ())) == names and names
    if not plain or hasattr(cls, "__post_init__"):
        return f"    return _cls({', '.join(values)})\n"
    scope["_new"] = object.__new__
    scope["_twin"] = type(cls.__name__, (), {"__slots__": tuple(names)})
    assignments = "".join([f"    m.{name} = {value}\n" for name, value in zip(names, values, strict=True)])
    return f"    m = _new(_twin)\n{assignments}    m.__class__ = _cls\n    return m\n"


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _optional(hint: Any) -> Any | None:
    """T of `T | None`; None where the hint is no such union."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        assert len(others) == 1, f"unsupported union: {hint}"
        return others[0]
    return None


def _encode_expression(value: str, hint: Any, scope: dict[str, Any]) -> str:
    inner = _optional(hint)
    if inner is not None:
        expression = _encode_expression(value, inner, scope)
        return value if expression == value else f"(None if {value} is None else {expression})"
    origin = typing.get_origin(hint)
    if origin is tuple:
        item, dots = typing.get_args(hint)
        assert dots is Ellipsis, f"unsupported tuple: {hint}"
        variable = f"x{len(value)}"
        expression = _encode_expression(variable, item, scope)
        return value if expression == variable else f"[{expression} for {variable} in {value}]"
    if origin is dict:
        _, item = typing.get_args(hint)
        variable = f"x{len(value)}"
        expression = _encode_expression(variable, item, scope)
        return f"{{k: {expression} for k, {variable} in {value}.items()}}"
    if dataclasses.is_dataclass(hint):
        return f"{_nested(hint, scope)}[0]({value})"
    assert hint in _PRIMITIVES or issubclass(hint, IntEnum), f"unsupported type: {hint}"
    return value


def _decode_expression(value: str, hint: Any, scope: dict[str, Any], where: str) -> str:
    inner = _optional(hint)
    if inner is not None:
        return f"(None if {value} is None else {_decode_expression(value, inner, scope, where)})"
    origin = typing.get_origin(hint)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        variable = f"x{len(value)}"
        expression = _decode_expression(variable, item, scope, where)
        return f"(tuple([{expression} for {variable} in {value}]) if type({value}) is tuple else _bad({value}, {where!r}))"
    if origin is dict:
        key, item = typing.get_args(hint)
        assert key is int, f"unsupported key: {hint}"
        variable = f"x{len(value)}"
        return f"_dict({value}, lambda {variable}: {_decode_expression(variable, item, scope, where)}, {where!r})"
    if dataclasses.is_dataclass(hint):
        return f"{_nested(hint, scope)}[1]({value})"
    if hint in _PRIMITIVES:
        return f"({value} if type({value}) is {_PRIMITIVES[hint]} else _bad({value}, {where!r}))"
    name = f"_e_{hint.__name__}"
    scope[name] = {member.value: member for member in hint}
    return f"_enum({name}, {value}, {where!r})"


def _nested(hint: Any, scope: dict[str, Any]) -> str:
    name = f"_c_{hint.__name__}"
    scope[name] = _codec(hint)
    return name


def _decode_enum(members: dict[int, Any], value: Any, where: str) -> Any:
    if type(value) is not int or value not in members:
        _bad(value, where)
    return members[value]


def _decode_dict(value: Any, item: Callable[[Any], Any], where: str) -> dict[int, Any]:
    if type(value) is not dict:
        _bad(value, where)
    result = {}
    for key, entry in value.items():
        if type(key) is not int:
            _bad(key, where)
        result[key] = item(entry)
    return result


def _bad(value: Any, where: str) -> Any:
    raise ProtocolError(f"{where}: unexpected {type(value).__name__}")
