"""Which changes of a JSON Schema break those who send by it, or those who read by it.

The rules that the API's description and the bus's have in common; docs/api-policy.md has them in
words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]
Schema = Mapping[str, Any]

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_SAME = ("pattern", "format", "multipleOf", "contentEncoding", "const", "default")


class SchemaChanges:
    """Compares schemas of two versions of a document.

    Args:
        old: Whose references the old schemas have.
        new: Whose the new ones have.
    """

    def __init__(self, old: Document, new: Document) -> None:
        self._old = old
        self._new = new
        self._under_way: set[tuple[str, str, bool]] = set()
        self._breaks: dict[tuple[str, str, bool], bool] = {}

    def sent(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        """What clients send: all that was good must stay good."""
        return self._once(where, old, new, sent=True)

    def got(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        """What clients get: all that was there stays, of the same kind. More may come."""
        return self._once(where, old, new, sent=False)

    def _sent(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        old, new = resolved(self._old, old), resolved(self._new, new)
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
        if isinstance(old.get("items"), list):
            yield from self._places(where, old, new, sent=True)
        elif "items" in new:
            yield from self.sent(f"{where}[]", old.get("items", {}), new["items"])

    def _sent_fields(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
            yield f"{where}.{name}: the field is required now"
        for name, schema in before.items():
            if name in after:
                yield from self.sent(f"{where}.{name}", schema, after[name])
            else:
                yield f"{where}.{name}: the field is gone"
        rest, rest_now = old.get("additionalProperties"), new.get("additionalProperties")
        if rest_now is False and rest is not False:
            yield f"{where}: fields of other names are not taken any more"
        elif isinstance(rest_now, Mapping) and rest is not False:
            yield from self.sent(f"{where}.*", rest if isinstance(rest, Mapping) else {}, rest_now)
        if "propertyNames" in new:
            names = old.get("propertyNames", {})
            yield from self.sent(f"{where}, names", names, new["propertyNames"])

    def _got(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        old, new = resolved(self._old, old), resolved(self._new, new)
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
            yield from self.got(f"{where}.{name}", schema, after[name])
        if isinstance(old.get("items"), list):
            yield from self._places(where, old, new, sent=False)
            if new.get("minItems", 0) < old.get("minItems", 0):
                yield f"{where}: it may have {new.get('minItems', 0)} places now"
        for word, mark in (("items", "[]"), ("additionalProperties", ".*")):
            if isinstance(old.get(word), Mapping):
                now = new.get(word)
                yield from self.got(
                    f"{where}{mark}", old[word], now if isinstance(now, Mapping) else {}
                )

    def _alternatives(self, where: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
        """Each alternative of who has to be understood must be one of the other's."""
        ours, theirs = _choices(old), _choices(new)
        wanted, offered = (ours, theirs) if sent else (theirs, ours)
        check = self.sent if sent else self.got
        for one in wanted:
            pairs = ((one, other) if sent else (other, one) for other in offered)
            if all(list(check(where, a, b)) for a, b in pairs):
                yield f"{where}: an alternative is {'gone' if sent else 'new'}"

    def _places(self, where: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
        """Arrays whose places mean different things: they grow at their end only."""
        now = new.get("items")
        if not isinstance(now, list):
            yield f"{where}: its places have no meaning of their own now"
            return
        for number, one in enumerate(old["items"]):
            place = f"{where}[{number}]"
            if number >= len(now):
                yield f"{place}: the place is gone"
            elif one.get("title") != now[number].get("title"):
                yield f"{place}: it is {now[number].get('title')}, was {one.get('title')}"
            else:
                yield from (self.sent if sent else self.got)(place, one, now[number])

    def _once(self, where: str, old: Schema, new: Schema, *, sent: bool) -> Iterator[str]:
        """Each pair of references is compared once: types may hold themselves."""
        check = self._sent if sent else self._got
        if "$ref" not in old or "$ref" not in new:
            yield from check(where, old, new)
            return
        pair = (old["$ref"], new["$ref"], sent)
        if pair in self._under_way:
            return
        if pair in self._breaks:
            if self._breaks[pair]:
                yield f"{where}: {_name(old)} has changed, as said elsewhere"
            return
        self._under_way.add(pair)
        found = list(check(where, old, new))
        self._under_way.remove(pair)
        self._breaks[pair] = bool(found)
        yield from found


def _name(schema: Schema) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def resolved(document: Document, schema: Schema) -> Schema:
    """A schema with what it refers to in place of the reference; `allOf` of one is one."""
    while True:
        if "$ref" in schema:
            found: Any = document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            word = "$ref"
        elif len(schema.get("allOf", ())) == 1:
            found, word = schema["allOf"][0], "allOf"
        else:
            return schema
        schema = {**found, **{name: value for name, value in schema.items() if name != word}}


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
