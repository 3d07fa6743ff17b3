"""Mistakes in a recipe, named by section and key."""

from __future__ import annotations

import difflib
import re
from types import UnionType
from typing import Any, get_args

import msgspec


def explain(message: str, table: dict[str, Any], kind: type[msgspec.Struct]) -> str:
    """A message of msgspec in the words of a recipe, with the nearest known name for an unknown one.

    Args:
        message: Of the validation error.
        table: The recipe as TOML has it.
        kind: The struct of a whole recipe.
    """
    parts = re.fullmatch(r"(.*?)(?: - at `\$\.?(.*?)`)?", message, re.DOTALL)
    assert parts is not None  # the pattern fits any text
    mistake, place = parts[1], parts[2] or ""
    where = f"[{place or 'top level'}]"
    if unknown := re.fullmatch("Object contains unknown field `(.+)`", mistake):
        fields = msgspec.structs.fields(_struct_at(place, table, kind))
        return f"{where} has no key '{unknown[1]}'; {_nearest(unknown[1], [field.name for field in fields])}"
    if missing := re.fullmatch("Object missing required field `(.+)`", mistake):
        return f"{where} lacks the key '{missing[1]}'"
    parent, _, key = place.rpartition(".")
    if wrong := re.fullmatch("Invalid (?:enum )?value '(.+)'", mistake):
        values = _known_values(parent, key, table, kind)
        return f"[{parent}] cannot have {key} = '{wrong[1]}'; {_nearest(wrong[1], values)}"
    return message.replace("`$.", "`")


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}"


def _options(kind: Any) -> list[Any]:
    """The members of a union, or the one type."""
    return list(get_args(kind)) if isinstance(kind, UnionType) else [kind]


def _options_at(place: str, table: dict[str, Any], kind: Any) -> list[Any]:
    """The structs that are possible at a place of a recipe, such as ``pretrain.augment``."""
    kinds: list[Any] = [kind]
    for part in filter(None, place.split(".")):
        fields = msgspec.structs.fields(_chosen(kinds, table))
        kinds = _options(next(field.type for field in fields if field.name == part))
        table = table[part]
    return kinds


def _struct_at(place: str, table: dict[str, Any], kind: Any) -> Any:
    """The struct at a place of a recipe; of a union's, the one that the recipe names."""
    kinds = _options_at(place, table, kind)
    for part in filter(None, place.split(".")):
        table = table[part]
    return _chosen(kinds, table)


def _chosen(kinds: list[Any], table: dict[str, Any]) -> Any:
    config = kinds[0].__struct_config__
    return next((kind for kind in kinds if kind.__struct_config__.tag == table.get(config.tag_field)), kinds[0])


def _known_values(place: str, key: str, table: dict[str, Any], kind: Any) -> list[str]:
    """The possible values of a key that chooses one of several."""
    kinds = _options_at(place, table, kind)
    if kinds[0].__struct_config__.tag_field == key:
        return [kind.__struct_config__.tag for kind in kinds]
    fields = msgspec.structs.fields(_struct_at(place, table, kind))
    return list(get_args(next(field.type for field in fields if field.name == key)))
