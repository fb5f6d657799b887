"""`vm.toml`: what is asked for with a VM, as a file.

The keys are the fields of `POST /v1/vms`, and `template`. A file that holds anything else is
refused, with all that is wrong in it, field by field. No value is ever shown: metadata may hold
secrets.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from enum import EnumType
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from decisec.cli.exits import CommandError, Exit
from decisec.cli.templates import FIELDS, Template
from schemas.api import CreateVmRequest

TEMPLATE = "template"
DEFAULTS: Mapping[str, Any] = {"image": "tiny"}
_MAX_BYTES = 1024 * 1024
_LEGIBLE = 100


class Wrong(NamedTuple):
    """Something that is wrong with a field; the field is empty for what is between them."""

    field: str
    message: str

    def __str__(self) -> str:
        """As it is told."""
        return f"{self.field}: {self.message}" if self.field else self.message


def read(source: str) -> dict[str, Any]:
    """The document in a file, or on stdin for `-`.

    Raises:
        CommandError: It cannot be read, or is no TOML: says where.
    """
    try:
        if source == "-":
            content = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with Path(source).open("rb") as stream:
                content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise refused(source, [Wrong("", "more than 1 MiB is no description of a VM")])
        return tomllib.loads(content.decode())
    except OSError as error:
        raise refused(source, [Wrong("", str(error.strerror))]) from error
    except UnicodeDecodeError as error:
        raise refused(source, [Wrong("", "not valid TOML: no UTF-8")]) from error
    except tomllib.TOMLDecodeError as error:
        raise refused(source, [Wrong("", f"not valid TOML: {error}")]) from error


def refused(source: str, wrongs: list[Wrong]) -> CommandError:
    """The error that tells of all that is wrong in a file."""
    name = "stdin" if source == "-" else source
    told = "\n  ".join(map(str, wrongs))
    lead = f"{name}: " if len(wrongs) == 1 else f"{name}: {len(wrongs)} things are wrong:\n  "
    return CommandError(lead + told, Exit.USAGE, "bad_config")


def wrong_in(document: Mapping[str, Any]) -> list[Wrong]:
    """All that is wrong in a document, each key by itself."""
    found = list(_wrong_template(document.get(TEMPLATE)))
    fields = {key: value for key, value in document.items() if key != TEMPLATE}
    return found + list(_wrong_struct(CreateVmRequest, fields, (), extra=(TEMPLATE,)))


def request_of(*layers: Mapping[str, Any]) -> CreateVmRequest:
    """The request that some layers make, each going before those to its left, with defaults.

    Raises:
        msgspec.ValidationError: They do not go together.
    """
    wanted: dict[str, Any] = {}
    for layer in (DEFAULTS, *layers):
        wanted = _over(wanted, {key: one for key, one in layer.items() if key != TEMPLATE})
    return msgspec.convert(wanted, CreateVmRequest)


def template_of(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the template that a document names."""
    name = document.get(TEMPLATE)
    return FIELDS[Template(name)] if name else {}


def document_of(request: CreateVmRequest) -> dict[str, Any]:
    """What a file has to hold for this request: the plain fields, and of the rest what is set."""
    fields = msgspec.to_builtins(request)
    plain = CreateVmRequest(image=request.image)
    usual = msgspec.to_builtins(plain)
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            kept = {
                key: one
                for key, one in value.items()
                if name in _FREE or one != usual[name].get(key)
            }
            if kept:
                found[name] = kept
        elif name in _ALWAYS or value != usual[name]:
            found[name] = value
    return found


_ALWAYS = frozenset({"image", "vcpus", "memory_mib", "disk_mib", "network", "restart"})
_FREE = frozenset({"kernel_args", "labels", "metadata"})


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        merged[key] = _over(under, value) if both and under is not None else value
    return merged


def _wrong_template(name: Any) -> Iterator[Wrong]:
    if name is not None and name not in tuple(Template):
        yield Wrong(TEMPLATE, f"none of {', '.join(Template)}{_near(str(name), list(Template))}")


def _wrong_struct(
    kind: type[msgspec.Struct],
    fields: Mapping[str, Any],
    path: tuple[str, ...],
    extra: tuple[str, ...] = (),
) -> Iterator[Wrong]:
    hints = get_type_hints(kind, include_extras=True)
    known = [*kind.__struct_fields__, *extra]
    for name, value in fields.items():
        where = (*path, name)
        if name not in kind.__struct_fields__:
            yield Wrong(".".join(where), f"no such key{_near(name, known) or _all(known)}")
        else:
            yield from _wrong_value(hints[name], value, where)


def _wrong_value(kind: Any, value: Any, path: tuple[str, ...]) -> Iterator[Wrong]:
    plain = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    if isinstance(value, Mapping) and isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        yield from _wrong_struct(plain, value, path)
        return
    found: list[Wrong] = []
    if isinstance(value, Mapping) and get_origin(plain) is dict:
        for name, one in value.items():
            found += _converted(plain, {name: one}, (*path, name))
    elif isinstance(value, list) and get_origin(plain) is tuple:
        for number, one in enumerate(value):
            found += _converted(plain, [one], (*path[:-1], f"{path[-1]}[{number}]"))
    yield from found or _converted(kind, value, path)


def _converted(kind: Any, value: Any, path: tuple[str, ...]) -> Iterator[Wrong]:
    allowed = _words_of(kind)
    if allowed and isinstance(value, str) and value not in allowed:
        shown = ", ".join(word or '""' for word in allowed)
        yield Wrong(".".join(path), f"none of {shown}{_near(value, allowed)}")
        return
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        words = str(error).partition(" - at ")[0]
        if len(words) > _LEGIBLE:
            # A pattern that nobody could read.
            words = "not of the form that it must have: docs/vms.md"
        yield Wrong(".".join(path), words[:1].lower() + words[1:])


def _words_of(kind: Any) -> list[str]:
    """The only texts that a type allows; none if it is not of that kind."""
    if get_origin(kind) is Literal:
        return [word for word in get_args(kind) if isinstance(word, str)]
    members: list[Any] = list(kind) if isinstance(kind, EnumType) else []
    return [str(member) for member in members]


def _near(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _all(known: list[str]) -> str:
    return f"; there are {', '.join(known)}"
