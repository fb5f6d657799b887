"""Examples for the plain `nats` tool in the docs: read, and done as it would do them.

The tool is written in Go and in no registry that tests can install from; its words are those of its
own `--help` (https://github.com/nats-io/natscli).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nats.aio.msg import Msg

from decisec.messages.headers import PARAMETERS
from runtime.bus import Bus
from tests.support.secured_bus import all_sent

_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_VM, _HOST = PARAMETERS["vm"].example, PARAMETERS["host"].example
_PATIENCE_S = 60.0
_FLAGS = {
    "context add": {"--server": 1, "--tlsca": 1, "--nkey": 1, "--inbox-prefix": 1, "--select": 0},
    "request": {"--timeout": 1, "--raw": 0},
    "sub": {"--count": 1, "--headers-only": 0},
    "stream ls": {},
    "stream info": {},
    "stream get": {"--last-for": 1},
    "consumer ls": {},
    "consumer info": {},
    "kv get": {"--raw": 0},
    "kv ls": {},
    "kv watch": {},
}
"""Flags of what the tool can do, as far as the docs use it: how many words follow each."""


@dataclass(frozen=True)
class Example:
    """One command line.

    Attributes:
        section: The heading that it stands under.
        words: What it does.
        arguments: What is no flag.
        flags: With their values.
    """

    section: str
    words: str
    arguments: tuple[str, ...]
    flags: Mapping[str, str]

    def about(self, *, vm: str, host: str) -> Example:
        """The same about a VM and a host that are there."""

        def put(text: str) -> str:
            return text.replace(_VM, vm).replace(_HOST, host)

        flags = {name: put(value) for name, value in self.flags.items()}
        return replace(self, arguments=tuple(map(put, self.arguments)), flags=flags)


def examples(page: Path) -> list[Example]:
    """All calls of `nats` on a page.

    Raises:
        ValueError: The tool has no such command or flag.
    """
    found = []
    for section in page.read_text().split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        for block in _BLOCK.findall(section):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("$ nats "):
                    words = shlex.split(line.removeprefix("$ nats "), comments=True)
                    found.append(_example(heading, words))
    return found


def _example(section: str, words: list[str]) -> Example:
    command = words[0] if words[0] in _FLAGS else " ".join(words[:2])
    if command not in _FLAGS:
        raise ValueError(f"nats {command}: there is no such command")
    rest, arguments, flags = words[len(command.split()) :], [], {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            arguments.append(word)
        elif word not in _FLAGS[command]:
            raise ValueError(f"nats {command}: there is no flag {word}")
        else:
            flags[word] = rest.pop(0) if _FLAGS[command][word] else ""
    return Example(section, command, tuple(arguments), flags)


async def do(bus: Bus, example: Example) -> bytes:
    """Do what the tool would do, and return what it would print, if that is one message.

    Raises:
        TransientError: The server does not permit it, or nobody answers.
        NotFoundError: There is no such stream, consumer, message or key.
    """
    js, asked = bus.js, example.arguments
    match example.words:
        case "request":
            # However long it may take on this machine.
            answer = await bus.request(asked[0], asked[1].encode(), timeout_s=_PATIENCE_S)
            return answer.data
        case "sub":
            for subject in asked:
                subscription = await bus.client.subscribe(subject, cb=_nothing)
                await all_sent(bus.client)
                await subscription.unsubscribe()
        case "stream ls":
            assert await js.streams_info()
        case "stream info":
            await js.stream_info(asked[0])
        case "stream get":
            found = await js.get_last_msg(asked[0], example.flags["--last-for"])
            return found.data or b""
        case "consumer ls":
            assert await js.consumers_info(asked[0])
        case "consumer info":
            await js.consumer_info(asked[0], asked[1])
        case "kv get":
            entry = await (await js.key_value(asked[0])).get(asked[1])
            return entry.value or b""
        case "kv ls":
            assert await (await js.key_value(asked[0])).keys()
        case "kv watch":
            watcher = await (await js.key_value(asked[0])).watchall()
            try:
                assert await watcher.updates(timeout=_PATIENCE_S) is not None  # type: ignore[no-untyped-call]
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]
        case "context add":
            assert {"--server", "--nkey", "--inbox-prefix"} <= example.flags.keys()
        case _:
            raise NotImplementedError(example.words)
    return b""


async def _nothing(_: Msg) -> None:
    """Hear a message."""
