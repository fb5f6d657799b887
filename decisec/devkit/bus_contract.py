"""What must not happen to the messages on the bus within one version, and the file of them.

`python -m decisec.devkit.bus_contract` writes `docs/asyncapi.json` anew. It refuses to where
somebody who goes by the file could break; docs/api-policy.md has the rules in words.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from decisec.devkit.api_contract import text
from decisec.devkit.schema_changes import Document, Schema, SchemaChanges, resolved
from decisec.messages.document import document

FILE = Path("docs/asyncapi.json")
_CLIENT = "customer"
"""The one role whose programs are not ours: what it sends need not be understood by an older
decisec, and what it gets it does not send. All others meet in different versions, both ways."""


def breaking(old: Document, new: Document) -> list[str]:
    """What may break somebody who goes by `old` and meets `new`, a sentence each."""
    return list(_Comparison(old, new).all())


class _Comparison:
    def __init__(self, old: Document, new: Document) -> None:
        self._old = old
        self._new = new
        self._schemas = SchemaChanges(old, new)

    def all(self) -> Iterator[str]:
        for name, channel in self._old["channels"].items():
            now = self._new["channels"].get(name)
            where = channel["address"] or channel["title"]
            if now is None:
                yield f"{where}: the subject is gone"
                continue
            yield from self._channel(name, where, channel, now)
        for name, operation in self._old["operations"].items():
            role = operation["tags"][0]["name"]
            channel = resolved(self._old, operation["channel"])
            where = f"{channel['address']}: {role} may {operation['action']}"
            if name not in self._new["operations"]:
                yield f"{where} no more"
            else:
                yield from self._operation(where, operation, self._new["operations"][name])

    def _channel(self, name: str, where: str, old: Document, new: Document) -> Iterator[str]:
        for word in ("address", "x-decisec-stream", "x-decisec-bucket"):
            if word in old and new.get(word) != old[word]:
                yield f"{where}: {word} is {new.get(word)}, was {old[word]}"
        for parameter, said in old.get("parameters", {}).items():
            values = resolved(self._old, said).get("enum")
            now = new.get("parameters", {}).get(parameter)
            allowed = resolved(self._new, now).get("enum") if now else None
            if values and allowed and (left := sorted(set(values) - set(allowed))):
                yield f"{where}: {parameter} is never {', '.join(left)} now"
        ways = self._ways(name)
        for key, message in old["messages"].items():
            if key not in new["messages"]:
                yield f"{where}: the message {key} is gone"
                continue
            before = resolved(self._old, message)
            after = resolved(self._new, new["messages"][key])
            yield from self._message(f"{where} {key}", before, after, ways)

    def _message(
        self, where: str, old: Document, new: Document, ways: tuple[bool, ...]
    ) -> Iterator[str]:
        if old.get("contentType") != new.get("contentType"):
            yield f"{where}: it is {new.get('contentType')}, was {old.get('contentType')}"
        headers, headers_now = old.get("headers", {}), new.get("headers", {})
        payload: Schema = old.get("payload", {})
        payload_now: Schema = new.get("payload", {})
        for sent in ways:
            check = self._schemas.sent if sent else self._schemas.got
            yield from check(f"{where} headers", headers, headers_now)
            yield from check(where, payload, payload_now)

    def _ways(self, channel: str) -> tuple[bool, ...]:
        """Whether new readers are to understand old messages, old readers new ones, or both."""
        asked = channel.removesuffix("Reply")
        senders = {
            operation["tags"][0]["name"]
            for operation in self._old["operations"].values()
            if operation["action"] == "send"
            and operation["channel"]["$ref"] == f"#/channels/{asked}"
        }
        if senders != {_CLIENT}:
            return (True, False)
        return (True,) if asked == channel else (False,)

    def _operation(self, where: str, old: Document, new: Document) -> Iterator[str]:
        if "messages" in new:
            messages = old.get("messages") or [
                {"$ref": f"{old['channel']['$ref']}/messages/{key}"}
                for key in resolved(self._old, old["channel"])["messages"]
            ]
            for one in messages:
                if one not in new["messages"]:
                    yield f"{where} {one['$ref'].rpartition('/')[2]} no more"
        if "reply" in old and "reply" not in new:
            yield f"{where}, and nothing answers now"
        now = set(new["x-decisec-how"])
        for how in old["x-decisec-how"]:
            if not now & {how, how.partition(",")[0]}:
                yield f"{where}, by {how}, no more"


def main(arguments: list[str] | None = None) -> int:
    """Write the file; returns 1 if that would break somebody, and was not meant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=FILE, help="what to write")
    parser.add_argument(
        "--breaking", action="store_true", help="write it though somebody may break: a new version"
    )
    given = parser.parse_args(arguments)
    new = json.loads(json.dumps(document()))
    if given.file.exists():
        found = breaking(json.loads(given.file.read_text()), new)
        for sentence in found:
            sys.stderr.write(f"breaks who goes by it: {sentence}\n")
        if found and not given.breaking:
            return 1
    given.file.write_text(text(new))
    return 0


if __name__ == "__main__":
    sys.exit(main())
