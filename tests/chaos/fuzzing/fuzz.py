"""Sends the messages, and holds each answer against what the model said."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from schemas.commands import Command
from schemas.subjects import VM_COMMANDS
from tests.chaos.fuzzing.minting import Message, Mint, body_of
from tests.chaos.fuzzing.model import ANSWERED, CARRIED_OUT, Model, UndecidedError, Verdict
from tests.chaos.fuzzing.model import identity_of as identity
from tests.chaos.fuzzing.mutations import FIXED_IDS, Mutator
from tests.chaos.fuzzing.wire_format import check_command, parse
from tests.support.agents import HOST, Client
from tests.support.raw_bus import RawBus

OPERATIONS = b"$KV.operations.>"
_BATCH = 200
_BACKLOG = 3000
_QUESTIONS_AT_ONCE = 12
_DRAINED_WITHIN_S = 60.0
_KEPT_OF_100 = 4
_SHARE_OF_QUESTIONS = 0.08
_CODES = {"no_such_vm": "not_found", "foreign_vm": "not_found"}


class StuckError(Exception):
    """The agent does not come to the end of what it was sent."""


class Fuzz:
    """One agent under fuzz.

    Args:
        client: On its bus, to look at streams.
        seed: Of all that is left to chance.

    Attributes:
        sent: By door and what must come of it.
        made: By what they were made.
        problems: What came otherwise, in words.
    """

    def __init__(self, client: Client, seed: int) -> None:
        self._client = client
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated
        self.model = Model(HOST)
        self._former: list[Message] = []
        self._mint = Mint(HOST, self._chance)
        self._mutator = Mutator(self._mint, self._chance, self.model.owners, self._some_former)
        self.sent: Counter[tuple[str, str]] = Counter()
        self.made: Counter[str] = Counter()
        self.undecided = 0
        self.problems: list[str] = []
        self.scripted: set[str] = set()
        self._expected: dict[str, tuple[Message, Verdict]] = {}
        self._asked: dict[bytes, Verdict] = {}
        self._questions = asyncio.Semaphore(_QUESTIONS_AT_ONCE)
        self._acks = 0
        self._numbers = 0

    def hear(self, subject: bytes, data: bytes) -> None:
        """What comes on the bus: acknowledgements, answers, operations."""
        if subject == b"_INBOX.raw.a":
            self._acks += 1
            if b'"error"' in data:
                self.problem(f"a message was not stored: {data!r}")
        elif subject.startswith(b"$KV."):
            self._settle(subject.rpartition(b".")[2].decode(), data)
        else:
            self._answered(subject, json.loads(data))

    def problem(self, text: str) -> None:
        """Something is not as it must be."""
        self.problems.append(text[:600])

    def note_done(self, message: Message, command: Command) -> None:
        """A command of a witness has its result: it may be sent again."""
        self.model.answered[str(command.command_id)] = identity(check_command(parse(message.data)))
        self._former.append(message)

    async def pour(self, bus: RawBus, count: int) -> None:
        """Send so many messages; returns once all have come to their end."""
        left = count
        while left:
            batch = min(_BATCH, left)
            for _ in range(batch):
                if self._chance.random() < _SHARE_OF_QUESTIONS:
                    await self._question(bus)
                else:
                    self._command(bus)
            left -= batch
            await bus.flush()
            while await self._backlog() > _BACKLOG:
                await asyncio.sleep(0.05)
        await self._drained(bus)

    def _command(self, bus: RawBus) -> None:
        while True:
            how, message = self._mutator.command()
            try:
                verdict = self.model.judge(message.subject, message.data, datetime.now(tz=UTC))
            except UndecidedError:
                verdict = Verdict(CARRIED_OUT)
            if verdict.outcome != CARRIED_OUT:
                break
            self.undecided += 1
        self.made[how] += 1
        self.sent["command", verdict.outcome] += 1
        if verdict.operation:
            self._expected[verdict.operation] = message, verdict
            self.model.unsettled.add(verdict.operation)
        bus.send(message.subject, message.data, reply=b"_INBOX.raw.a", header=message.header)

    async def _question(self, bus: RawBus) -> None:
        while True:
            message, reply = self._mutator.question()
            try:
                verdict = self.model.ask(message.subject, message.data, reply=reply)
            except UndecidedError:
                self.undecided += 1
                continue
            break
        self._note_question(verdict)
        if reply:
            await self._ask(bus, message, verdict)
            return
        nowhere = self._chance.choice((b"", b"vm.cmd.h1.x.boot", b"$KV.hosts.h1"))
        bus.send(message.subject, message.data, reply=nowhere)

    async def _ask(self, bus: RawBus, message: Message, verdict: Verdict) -> None:
        await self._questions.acquire()
        self._numbers += 1
        inbox = b"_INBOX.raw.q%d" % self._numbers
        self._asked[inbox] = verdict
        bus.send(message.subject, message.data, reply=inbox, header=message.header)

    def _note_question(self, verdict: Verdict) -> None:
        self.made["question"] += 1
        self.sent["question", verdict.outcome] += 1

    def _answered(self, inbox: bytes, answer: dict[str, Any]) -> None:
        verdict = self._asked.pop(inbox, None)
        if verdict is None:
            self.problem(f"an answer that nobody waits for: {answer}")
            return
        self._questions.release()
        error = answer.get("error")
        code = "" if error is None else error["code"]
        wanted = "" if verdict.outcome == ANSWERED else _CODES.get(verdict.outcome, "bad_request")
        if code != wanted:
            self.problem(f"a question that is {verdict.outcome} was answered {answer}")

    def _settle(self, command_id: str, data: bytes) -> None:
        """An operation was written: it must be one that was to be, and say what it must."""
        if command_id in self.scripted or not data:
            return
        operation = json.loads(data)
        expected = self._expected.pop(command_id, None)
        if expected is None:
            if command_id not in self.model.answered:
                self.problem(f"an operation that nobody may write: {operation}")
            return
        message, verdict = expected
        self.model.unsettled.discard(command_id)
        code = (operation.get("error") or {}).get("code")
        told = (operation["customer_id"], operation["vm_id"], operation["host_id"])
        if (operation["status"], code, told) != ("failed", verdict.code, verdict.identity[:3]):
            self.problem(f"{verdict.outcome} {message.data[:300]!r} came to {operation}")
        if self._chance.randrange(100) < _KEPT_OF_100 or command_id in FIXED_IDS:
            self.model.answered[command_id] = verdict.identity
            self._former.append(message)

    def _some_former(self) -> Message | None:
        return self._chance.choice(self._former) if self._former else None

    async def _backlog(self) -> int:
        info = await self._client.bus.js.stream_info(VM_COMMANDS)
        return int(info.state.messages)

    async def _drained(self, bus: RawBus) -> None:
        # Questions are taken in their order, those that get no answer too: this one is the last.
        vm = next(iter(self.model.owners))
        asked = self._mint.question(vm_id=vm, customer_id=self.model.owners[vm])
        subject = f"vm.ask.{HOST}.{vm}.console".encode()
        self.sent["question", ANSWERED] += 1
        await self._ask(bus, Message(subject, body_of(asked)), Verdict(ANSWERED))
        try:
            async with asyncio.timeout(_DRAINED_WITHIN_S):
                while await self._backlog() or self._asked or self._expected:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            self.problem(f"{await self._backlog()} commands, {len(self._asked)} questions are left")
            for message, verdict in self._expected.values():
                self.problem(f"no operation says what came of {verdict.outcome} {message}")
            raise StuckError("\n".join(self.problems[-20:])) from None
