"""What must not happen to the API's description within one version, and the file that holds it.

`python -m decisec.devkit.api_contract` writes `docs/openapi.json` anew. It refuses to where a
client that goes by the file could break; docs/api-policy.md has the rules in words.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

Document = Mapping[str, Any]
Schema = Mapping[str, Any]

FILE = Path("docs/openapi.json")
_METHODS = ("get", "put", "post", "delete", "patch")

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_SAME = ("pattern", "format", "multipleOf", "contentEncoding", "const", "default")


def described() -> dict[str, Any]:
    """The document of this version's gateway, which needs no bus for it."""
    from gateway.contract import document
    from gateway.http import Services, build
    from gateway.mutations import Mutations

    nothing: Any = None
    parts = {one.name: nothing for one in fields(Services)}
    services = Services(**parts | {"mutations": Mutations(nothing, nothing)})
    whole: Any = build(services, nothing, nothing, nothing, nothing, max_body_bytes=65_536)
    # As a reader of the file has it: a default that is a tuple here is a list there.
    found: dict[str, Any] = json.loads(text(document(whole.app.app)))
    return found


def text(document: Document) -> str:
    """The document as it stands in the file."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def breaking(old: Document, new: Document) -> list[str]:
    """What may break a client of `old` that meets `new`, a sentence each; empty if nothing does."""
    return list(_Comparison(old, new).all())


class _Comparison:
    def __init__(self, old: Document, new: Document) -> None:
        self._old = old
        self._new = new
        self._under_way: set[tuple[str, str, bool]] = set()

    def all(self) -> Iterator[str]:
        for path, item in self._old["paths"].items():
            now = self._new["paths"].get(path)
            if now is None:
                yield f"{path}: the path is gone"
                continue
            for method in _METHODS:
                if method in item:
                    where = f"{method.upper()} {path}"
                    if method not in now:
                        yield f"{where}: the method is gone"
                    else:
                        yield from self._operation(where, item[method], now[method])

    def _operation(self, where: str, old: Document, new: Document) -> Iterator[str]:
        yield from self._parameters(where, old, new)
        yield from self._body(where, old.get("requestBody"), new.get("requestBody"))
        yield from self._answers(where, old["responses"], new["responses"])
        if not old.get("security", True) and new.get("security", True):
            yield f"{where}: a token is needed now"

    def _parameters(self, where: str, old: Document, new: Document) -> Iterator[str]:
        before = self._named(self._old, old)
        after = self._named(self._new, new)
        for name, parameter in before.items():
            if name not in after:
                yield f"{where}: the {name[0]} parameter {name[1]} is gone"
                continue
            if after[name].get("required") and not parameter.get("required"):
                yield f"{where}: the {name[0]} parameter {name[1]} is required now"
            yield from self._sent(
                f"{where}: parameter {name[1]}", parameter["schema"], after[name]["schema"]
            )
        for name in after.keys() - before.keys():
            if after[name].get("required"):
                yield f"{where}: the new {name[0]} parameter {name[1]} is required"

    def _named(
        self, document: Document, operation: Document
    ) -> dict[tuple[str, str], Mapping[str, Any]]:
        found = {}
        for one in operation.get("parameters", ()):
            parameter = _resolved(document, one)
            name = parameter["name"]
            found[parameter["in"], name.lower() if parameter["in"] == "header" else name] = (
                parameter
            )
        return found

    def _body(self, where: str, old: Document | None, new: Document | None) -> Iterator[str]:
        if new is None:
            if old is not None:
                yield f"{where}: it takes no body any more"
            return
        if new.get("required") and not (old or {}).get("required"):
            yield f"{where}: a body is required now"
        for kind, media in (old or {}).get("content", {}).items():
            if kind not in new["content"]:
                yield f"{where}: bodies of {kind} are not taken any more"
            else:
                now = new["content"][kind]["schema"]
                yield from self._sent(f"{where}: body", media["schema"], now)

    def _answers(self, where: str, old: Document, new: Document) -> Iterator[str]:
        for status, response in old.items():
            if not status.startswith("2"):
                continue
            if status not in new:
                yield f"{where}: the answer {status} is gone"
                continue
            before = _resolved(self._old, response)
            after = _resolved(self._new, new[status])
            for name in before.get("headers", {}).keys() - after.get("headers", {}).keys():
                yield f"{where}: the header {name} of the answer {status} is gone"
            for kind, media in before.get("content", {}).items():
                if kind not in after.get("content", {}):
                    yield f"{where}: the answer {status} is not {kind} any more"
                else:
                    now = after["content"][kind]["schema"]
                    yield from self._got(f"{where}: answer {status}", media["schema"], now)
        problem = _resolved(self._old, old["default"]) if "default" in old else {}
        now = _resolved(self._new, new["default"]) if "default" in new else {}
        for kind in problem.get("content", {}).keys() - now.get("content", {}).keys():
            yield f"{where}: errors are not {kind} any more"

    def _sent(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        """What clients send: all that was good must stay good."""
        if self._seen(old, new, sent=True):
            return
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if len(_choices(old)) > 1 or len(_choices(new)) > 1:
            yield from self._alternatives(where, old, new, sent=True)
            return
        kinds, kinds_now = _kinds(old), _kinds(new)
        if kinds_now and not (kinds and kinds <= kinds_now):
            yield f"{where}: {_words(kinds - kinds_now or {'anything'})} is not taken any more"
        if "enum" in new:
            left = [value for value in old.get("enum", ("anything",)) if value not in new["enum"]]
            if left:
                yield f"{where}: {_words(left)} is not taken any more"
        for word in _LOWER:
            if word in new and new[word] > old.get(word, float("-inf")):
                yield f"{where}: {word} is {new[word]}, was {old.get(word, 'none')}"
        for word in _UPPER:
            if word in new and new[word] < old.get(word, float("inf")):
                yield f"{where}: {word} is {new[word]}, was {old.get(word, 'none')}"
        for word in _SAME:
            if old.get(word) != new.get(word) and not (word != "default" and word not in new):
                yield f"{where}: {word} is {new.get(word)!r}, was {old.get(word)!r}"
        yield from self._sent_fields(where, old, new)
        if "items" in new:
            yield from self._sent(f"{where}[]", old.get("items", {}), new["items"])

    def _sent_fields(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
            yield f"{where}.{name}: the field is required now"
        for name, schema in before.items():
            if name in after:
                yield from self._sent(f"{where}.{name}", schema, after[name])
            else:
                yield f"{where}.{name}: the field is gone"
        rest, rest_now = old.get("additionalProperties"), new.get("additionalProperties")
        if rest_now is False and rest is not False:
            yield f"{where}: fields of other names are not taken any more"
        elif isinstance(rest_now, Mapping) and rest is not False:
            yield from self._sent(f"{where}.*", rest if isinstance(rest, Mapping) else {}, rest_now)
        if "propertyNames" in new:
            names = old.get("propertyNames", {})
            yield from self._sent(f"{where}, names", names, new["propertyNames"])

    def _got(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        """What clients get: all that was there stays, of the same kind. More may come."""
        if self._seen(old, new, sent=False):
            return
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if len(_choices(old)) > 1 or len(_choices(new)) > 1:
            yield from self._alternatives(where, old, new, sent=False)
            return
        kinds, kinds_now = _kinds(old), _kinds(new)
        if kinds and not (kinds_now and kinds_now <= kinds):
            yield f"{where}: it may be {_words(kinds_now - kinds or {'anything'})} now"
        for word in ("format", "contentEncoding", "const"):
            if old.get(word) != new.get(word):
                yield f"{where}: {word} is {new.get(word)!r}, was {old.get(word)!r}"
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, schema in before.items():
            if name not in after:
                yield f"{where}.{name}: the field is gone"
                continue
            if name in old.get("required", ()) and name not in new.get("required", ()):
                yield f"{where}.{name}: the field may be missing now"
            yield from self._got(f"{where}.{name}", schema, after[name])
        for word, mark in (("items", "[]"), ("additionalProperties", ".*")):
            if isinstance(old.get(word), Mapping):
                now = new.get(word)
                yield from self._got(
                    f"{where}{mark}", old[word], now if isinstance(now, Mapping) else {}
                )

    def _alternatives(self, where: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
        """Each alternative of who has to be understood must be one of the other's."""
        ours, theirs = _choices(old), _choices(new)
        wanted, offered = (ours, theirs) if sent else (theirs, ours)
        check = self._sent if sent else self._got
        for one in wanted:
            pairs = ((one, other) if sent else (other, one) for other in offered)
            if all(list(check(where, a, b)) for a, b in pairs):
                yield f"{where}: an alternative is {'gone' if sent else 'new'}"

    def _seen(self, old: Schema, new: Schema, *, sent: bool) -> bool:
        """Whether this pair of references is being compared, or was: types may hold themselves."""
        if "$ref" not in old or "$ref" not in new:
            return False
        pair = (old["$ref"], new["$ref"], sent)
        if pair in self._under_way:
            return True
        self._under_way.add(pair)
        return False


def _resolved(document: Document, schema: Schema) -> Schema:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = {**found, **{name: value for name, value in schema.items() if name != "$ref"}}
    return schema


def _choices(schema: Schema) -> list[Schema]:
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return list(schema[word])
    return [schema]


def _kinds(schema: Schema) -> set[str]:
    kind = schema.get("type", ())
    kinds = {kind} if isinstance(kind, str) else set(kind)
    # Every integer is a number.
    return kinds | {"integer"} if "number" in kinds else kinds


def _words(values: Any) -> str:
    return ", ".join(sorted(str(value) for value in values))


def main(arguments: list[str] | None = None) -> int:
    """Write the file; returns 1 if that would break clients, and was not meant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=FILE, help="what to write")
    parser.add_argument(
        "--breaking", action="store_true", help="write it though clients may break: a new version"
    )
    given = parser.parse_args(arguments)
    new = described()
    if given.file.exists():
        found = breaking(json.loads(given.file.read_text()), new)
        for sentence in found:
            sys.stderr.write(f"breaks clients: {sentence}\n")
        if found and not given.breaking:
            return 1
    given.file.write_text(text(new))
    return 0


if __name__ == "__main__":
    sys.exit(main())
