"""JSON Schema of messages as msgspec gives it, with the words of docstrings for each field."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

_SEE = re.compile(r"See `(\w+)`")
_ATTRIBUTE = re.compile(r"^((?:\w+, )*\w+): ((?:.|\n(?= |\n))+)", re.MULTILINE)


def components(kinds: Iterable[type], ref_template: str) -> dict[str, dict[str, Any]]:
    """Schemas of some types and of all that they hold, by name.

    Args:
        kinds: Struct types.
        ref_template: How a schema refers to another one: `#/…/{name}`.
    """
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, found = msgspec.json.schema_components(ordered, ref_template=ref_template)
    known = _known(ordered)
    words = {kind.__name__: _words(kind) for kind in known}
    for kind in known:
        explain(found[kind.__name__], _seen_elsewhere(kind, words) | inherited_words(kind))
    for component in found.values():
        explain(component, {})
    return found


def explain(component: dict[str, Any], inherited: dict[str, str]) -> None:
    """Give each property what the docstring says of it as an attribute.

    Args:
        component: A schema whose description is the docstring.
        inherited: What the docstrings of its bases say, by field.
    """
    text, attributes = split_docstring(component.get("description", ""))
    component["description"] = text
    properties = component.get("properties", {})
    for name, words in {**inherited, **attributes}.items():
        if name in properties:
            properties[name].setdefault("description", words)


def split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the whole, in one line, and what of each attribute."""
    text, _, attributes = inspect.cleandoc(docstring).partition("\nAttributes:\n")
    found: dict[str, str] = {}
    for names, words in _ATTRIBUTE.findall(inspect.cleandoc(attributes)):
        found |= dict.fromkeys(names.split(", "), " ".join(words.split()))
    return " ".join(text.split()), found


def _words(kind: type) -> dict[str, str]:
    return inherited_words(kind) | split_docstring(kind.__doc__ or "")[1]


def _seen_elsewhere(kind: type, words: Mapping[str, dict[str, str]]) -> dict[str, str]:
    """What the type says of the fields to which a docstring points: "See `VmSpec`" for one."""
    pointed = _SEE.search(kind.__doc__ or "")
    return words.get(pointed[1], {}) if pointed else {}


def inherited_words(kind: type) -> dict[str, str]:
    """What the docstrings of a struct's bases say of its fields."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[1:]):
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct:
            found |= split_docstring(base.__dict__.get("__doc__") or "")[1]
    return found


def _known(kinds: Iterable[type]) -> set[type]:
    """Structs among some types and in their fields."""
    found: set[type] = set()
    waiting: list[Any] = [msgspec.inspect.type_info(kind) for kind in kinds]
    while waiting:
        match waiting.pop():
            case msgspec.inspect.StructType(cls=cls, fields=fields):
                if cls not in found:
                    found.add(cls)
                    waiting += [field.type for field in fields]
            case msgspec.inspect.UnionType(types=types):
                waiting += types
            case msgspec.inspect.DictType(value_type=value):
                waiting.append(value)
            case (
                msgspec.inspect.VarTupleType(item_type=item)
                | msgspec.inspect.ListType(item_type=item)
            ):
                waiting.append(item)
            case msgspec.inspect.Metadata(type=kind):
                waiting.append(kind)
    return found
