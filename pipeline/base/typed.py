"""Typed values from YAML and JSON files: a dataclass, or one sentence that says what does not fit, where and what would."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipeline.base.command import UserError, nearest

T = TypeVar("T")

# Names of files that are not UTF-8 hold lone surrogates, which pydantic takes for no text: they pass it in a private plane.
_AWAY = {code: 0xF0000 + code for code in range(0xD800, 0xE000)}
_BACK = {away: code for code, away in _AWAY.items()}
_SHOWN = 200  # characters of a value in a sentence

_EXPECTED = {  # pydantic's kinds of error, in words
    "string_type": "some text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "too_long": "fewer values",
    "dict_type": "'key: value' lines",
    "dataclass_type": "'key: value' lines",
}


def read_typed(kind: type[T], values: Any, place: str) -> T:
    """`values`, as YAML or JSON gave them, as the dataclass `kind`; nested dataclasses, tuples and mappings included.

    Strict: "1" and true are no numbers, keys that `kind` does not have are refused. `place`: the file, for the sentence.
    Raises UserError.
    """
    check_keys(kind, values, place)
    key: Any = kind  # mypy takes type[T] for unhashable
    text = json.dumps(values, default=str, ensure_ascii=False)
    try:
        typed: T = _adapter(key).validate_json(text.translate(_AWAY), strict=True)
    except ValidationError as error:
        raise UserError(_sentence(error, values, place)) from None
    return typed if text.isascii() or text.translate(_AWAY) == text else _brought_back(typed)


def _brought_back(value: Any) -> Any:
    """`value` with the characters that `_AWAY` has replaced."""
    if isinstance(value, str):
        return value.translate(_BACK)
    if isinstance(value, Mapping):
        return {_brought_back(key): _brought_back(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_brought_back, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: _brought_back(getattr(value, one.name)) for one in dataclasses.fields(value) if one.init}
        return dataclasses.replace(value, **fields)
    return value


@cache  # an adapter of Config takes 6 ms to make, longer than reading a config with it
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def check_keys(kind: type, values: Any, place: str) -> None:
    """Raise UserError, with the nearest valid key, for a key that the dataclass `kind`, or one within it, does not have."""
    for prefix, found, valid in _mappings(kind, values, ""):
        for key in found:
            if key not in valid:
                raise UserError(f"unknown key '{prefix}{key}' in {place}: {nearest(str(key), valid)}")


def _mappings(kind: type, values: Any, prefix: str) -> Iterator[tuple[str, Mapping[str, Any], list[str]]]:
    """(prefix, mapping, its valid keys) of `values` and all within it that stands where a dataclass is expected."""
    if not isinstance(values, Mapping):
        return
    types = _types(kind)
    yield prefix, values, [*types]
    for key, value in values.items():
        for part in (types[key], *get_args(types[key])):  # X itself, or the X of `tuple[X, ...]` or `X | None`
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                for place, item in _items(types[key], value):
                    yield from _mappings(part, item, f"{prefix}{key}{place}.")


@cache  # a manifest has thousands of shards and classes
def _types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass, in order, with their types."""
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in dataclasses.fields(kind)}


def _items(kind: Any, value: Any) -> list[tuple[str, Any]]:
    """(place, item) of what a key of type `kind` holds: the value itself, or those of a list or of a `dict[str, X]`."""
    if isinstance(value, list):
        return [(f"[{number}]", item) for number, item in enumerate(value)]
    if get_origin(kind) is dict and isinstance(value, Mapping):
        return [(f".{name}", item) for name, item in value.items()]
    return [("", value)]


def _sentence(error: ValidationError, values: Any, place: str) -> str:
    errors = error.errors()
    first, path = errors[0], _path(errors[0]["loc"], values)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    value = first["input"]
    shown = repr(value) if len(repr(value)) <= _SHOWN else f"{repr(value)[:_SHOWN]}..."
    match first["type"]:
        case "missing":
            return f"'{key}' is missing in {place}: add it"
        case "json_invalid":
            return f"{place} is nested too deeply"
        case "dataclass_type" if not key:
            return f"{place} holds no 'key: value' lines"
        case "literal_error":
            valid = [word.strip("'") for word in first["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            return f"'{key}' in {place} is {shown}: {nearest(str(value), valid)}"
    # Where one of several types is expected, there is an error for each.
    alike = [one for one in errors if _path(one["loc"], values) == path]
    expected = dict.fromkeys(_EXPECTED.get(one["type"], one["msg"]) for one in alike)
    return f"'{key}' in {place} is {shown}: give {' or '.join(expected)}"


def _path(where: tuple[int | str, ...], values: Any) -> tuple[int | str, ...]:
    """The part of an error's location that leads through the values: behind it, pydantic names the types that it tried."""
    for depth, part in enumerate(where):
        last = depth + 1 == len(where)  # which may be missing
        if isinstance(values, list) and isinstance(part, int):
            values = None if last else values[part]
        elif isinstance(values, Mapping) and (part in values or last):
            values = values.get(part)
        else:
            return where[:depth]
    return where
