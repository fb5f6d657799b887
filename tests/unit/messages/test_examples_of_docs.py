"""What docs/bus.md tells people to type: the tool has it, and decisec understands it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decisec.bus.roles import shipped
from decisec.messages.catalog import CHANNELS, channel_of
from decisec.messages.document import document
from decisec.messages.grants import Grants
from runtime.streams import declared
from schemas.requests import REQUESTS
from tests.support.asyncapi import Payloads
from tests.support.nats_tool import Example, examples

PAGE = Path(__file__).parents[3] / "docs/bus.md"
ROLES = {"As a customer's service": "customer", "As an operator": "operator"}
EXAMPLES = examples(PAGE)


@pytest.fixture(scope="module")
def payloads() -> Payloads:
    found: dict[str, Any] = json.loads(json.dumps(document()))
    return Payloads(found)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.words} {' '.join(e.arguments)}")
def test_examples_are_right(payloads: Payloads, example: Example) -> None:
    """Each request is valid by the schema of its subject, and its role may say it."""
    role, grants = ROLES[example.section], Grants(shipped(), declared())
    match example.words:
        case "request":
            subject, body = example.arguments
            found = channel_of(subject)
            assert found is not None
            (message,) = found[0].messages.values()
            assert payloads.problems(message.key, json.loads(body)) == []
            assert role in {grant.role for grant in grants.senders(found[0])}
            waits = json.loads(body).get("wait_s", 0)
            assert float(example.flags.get("--timeout", "5s").removesuffix("s")) > waits
        case "sub":
            for subject in example.arguments:
                stem = subject.removesuffix(">").removesuffix("*.vm_stopped")
                heard = [c for c in CHANNELS if _begins(c.address, stem)]
                assert heard
                for channel in heard:
                    assert role in {grant.role for grant in grants.receivers(channel)}
        case "kv get" | "kv ls" | "kv watch":
            assert example.arguments[0] in {bucket.name for bucket in declared().bucket}
            if example.words == "kv get":
                assert channel_of(f"$KV.{'.'.join(example.arguments)}") is not None
        case "stream info" | "stream get" | "consumer ls" | "consumer info":
            assert example.arguments[0] in {stream.name for stream in declared().stream}


def _begins(address: str, stem: str) -> bool:
    """Whether subjects of an address begin so."""
    parts = stem.rstrip(".").split(".")
    pairs = zip(address.split("."), parts, strict=False)
    return all(part.startswith("{") or part == word for part, word in pairs)


def test_every_verb_is_in_the_table() -> None:
    """With what it answers."""
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    for verb, asked in REQUESTS.items():
        assert any(f"`{verb}`" in line.split("|")[1] for line in table), verb
        assert any(f"`{asked.answer}`" in line.split("|")[-2] for line in table), verb
