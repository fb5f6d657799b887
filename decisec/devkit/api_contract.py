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

from decisec.devkit.schema_changes import Document, SchemaChanges, resolved

FILE = Path("docs/openapi.json")
_METHODS = ("get", "put", "post", "delete", "patch")


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
        self._schemas = SchemaChanges(old, new)

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
            yield from self._schemas.sent(
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
            parameter = resolved(document, one)
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
                yield from self._schemas.sent(f"{where}: body", media["schema"], now)

    def _answers(self, where: str, old: Document, new: Document) -> Iterator[str]:
        for status, response in old.items():
            if not status.startswith("2"):
                continue
            if status not in new:
                yield f"{where}: the answer {status} is gone"
                continue
            before = resolved(self._old, response)
            after = resolved(self._new, new[status])
            for name in before.get("headers", {}).keys() - after.get("headers", {}).keys():
                yield f"{where}: the header {name} of the answer {status} is gone"
            for kind, media in before.get("content", {}).items():
                if kind not in after.get("content", {}):
                    yield f"{where}: the answer {status} is not {kind} any more"
                else:
                    now = after["content"][kind]["schema"]
                    yield from self._schemas.got(f"{where}: answer {status}", media["schema"], now)
        problem = resolved(self._old, old["default"]) if "default" in old else {}
        now = resolved(self._new, new["default"]) if "default" in new else {}
        for kind in problem.get("content", {}).keys() - now.get("content", {}).keys():
            yield f"{where}: errors are not {kind} any more"


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
