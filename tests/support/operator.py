"""An operator at the command line, beside a bus that a test looks at itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.bus import Bus
from runtime.publisher import Publisher
from schemas.frames import HEADER_DETAIL, HEADER_REASON
from schemas.ids import new_id
from schemas.subjects import metrics_rejected
from tests.support.dev_stack import program
from tests.support.nats import NatsServer
from tests.support.shell import Done, Shell


class Operator:
    """Runs commands against a server while the test's own connection stands."""

    def __init__(self, shell: Shell, server: NatsServer, bus: Bus, folder: Path) -> None:
        self.bus = bus
        self.folder = folder
        self.url = server.url
        self._shell = shell

    async def __call__(self, *arguments: str) -> Done:
        """One command line."""
        return await asyncio.to_thread(self._shell, *arguments, DECISEC_NATS_URL=self.url)

    def program(self, *arguments: str) -> Any:
        """The same as a process of its own, that can be signalled."""
        return program(
            *arguments, "--nats-url", self.url, cwd=self.folder, state_dir=self.folder / "none"
        )


def lines(text: str) -> list[dict[str, Any]]:
    """A document per line."""
    return [json.loads(line) for line in text.splitlines()]


def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for what nothing tells of, in a thread of its own."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


async def refuse(bus: Bus, reason: str, data: bytes, host: str = "h1") -> None:
    """Set a message aside, as the collector does; its detail is no markup."""
    await Publisher(bus).publish(
        metrics_rejected(reason, host), data, msg_id=str(new_id()),
        headers={HEADER_REASON: reason, HEADER_DETAIL: "first VM [bold]x [/]"},
    )  # fmt: skip
