"""Requests with an idempotency key: the same one gets the same answer, and has one effect.

The key is claimed in a bucket before anything is done, and the answer is written there after it
was given, off its path. What the request makes has ids that follow from the claim. So a gateway
that dies in between leaves a claim without an answer: once that claim has run out, the next try
takes it over with the same ids, finds what was done, does the rest, and answers.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from uuid import UUID

import msgspec
import structlog

from gateway.errors import RefusedError
from runtime.buckets import Bucket, RevisionConflictError
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import DecisecError, PoisonError, TransientError
from runtime.telemetry import meter
from schemas.api import FieldProblem
from schemas.errors import ErrorCode
from schemas.idempotency import (
    IDEMPOTENCY_HEADER,
    KEY_PATTERN,
    MAX_KEY,
    KeptAnswer,
    KeyRecord,
    decode_key_record,
    idempotency_entry,
)
from schemas.ids import new_id
from schemas.subjects import IDEMPOTENCY_KEYS

_log = structlog.get_logger("decisec.idempotency")

LEASE_S = 15.0
"""Longer than a mutation takes apart from the wait that it was asked for."""

KEPT_REFUSALS = frozenset({403, 404, 409, 410, 412, 422})
"""Statuses of refusals that are kept as answers: they were decided on. Others may be tried again
with the same key."""

MAX_UNWRITTEN = 1024
MAX_ANSWER_BYTES = 131_072
_AT_ONCE = 64
_FLUSHED_WITHIN_S = 3.0
_KEY = re.compile(KEY_PATTERN)


def check_key(key: str) -> str:
    """The key, if it is one.

    Raises:
        RefusedError: BAD_REQUEST.
    """
    if len(key) <= MAX_KEY and _KEY.fullmatch(key):
        return key
    message = f"1 to {MAX_KEY} printable ASCII characters without spaces"
    raise RefusedError(
        ErrorCode.BAD_REQUEST,
        f"{IDEMPOTENCY_HEADER}: {message}",
        fields=(FieldProblem(field=IDEMPOTENCY_HEADER, message=message),),
    )


def digest(*parts: bytes) -> str:
    """What tells one request from another."""
    found = blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.hexdigest()


def http_digest(
    customer_id: str, method: str, path: bytes, *, query: bytes, if_match: str, body: bytes
) -> str:
    """The same of a request over HTTP; the customer is empty for an operator who has none."""
    condition = if_match.encode("latin-1", "replace")
    return digest(b"http", customer_id.encode(), method.encode(), path, query, condition, body)


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that this request has for itself.

    Attributes:
        seed: See `Act`.
        repeated: See `Act`.
    """

    entry: str
    request: str
    seed: UUID
    revision: int
    repeated: bool


class Keys:
    """The keys of all customers.

    Args:
        bus: The connection.
    """

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, IDEMPOTENCY_KEYS, decode_key_record)
        self._queue: asyncio.Queue[tuple[Claim, KeptAnswer | None]] = asyncio.Queue(MAX_UNWRITTEN)
        self._given: dict[str, tuple[str, KeptAnswer]] = {}
        self._requests = meter().create_counter(
            "decisec_idempotency_requests", description="Requests with a key, by what came of it"
        )
        self._unkept = meter().create_counter(
            "decisec_idempotency_answers_unkept",
            description="Answers that were not stored; a repeat finds out what was done instead",
        )

    async def claim(
        self, customer_id: str, key: str, request: str, wait_s: float = 0.0
    ) -> Claim | KeptAnswer:
        """Have a key for this request, or the answer that was given to it before.

        Args:
            customer_id: Whose key it is.
            key: As `check_key` passed it.
            request: A `digest`.
            wait_s: How long the request may wait on purpose.

        Raises:
            RefusedError: IDEMPOTENCY_KEY_REUSED for another request, REQUEST_IN_PROGRESS while
                the first one is not answered.
            TransientError: The bucket cannot be reached.
        """
        entry = idempotency_entry(customer_id, key)
        if given := self._given.get(entry):
            # Not in the bucket yet.
            _check_same(request, given[0])
            return self._repeat(given[1])
        record = KeyRecord(request=request, seed=new_id(), until=_until(wait_s))
        try:
            revision = await self._bucket.create(entry, record)
        except RevisionConflictError:
            return await self._again(entry, record)
        self._count("first")
        return Claim(entry, request, record.seed, revision, repeated=False)

    def settle(self, claim: Claim, answer: KeptAnswer, error: Exception | None = None) -> None:
        """Take the answer that is given to a claimed request.

        It is kept if it was decided on. If nothing was done, the claim is forgotten, and the
        request may come again. If what was asked for may have happened, the claim stays without
        an answer, and a later try finds out.

        Args:
            claim: Of the request.
            answer: As it is given.
            error: What it was made of, if it is a refusal.
        """
        refused = error if isinstance(error, RefusedError) else None
        decided = refused is not None and refused.decided
        if error is not None and (refused is None or refused.unsure):
            self._unkept.add(1, {"reason": "unsure"})
        elif answer.status >= 300 and answer.status not in KEPT_REFUSALS and not decided:
            self._enqueue(claim, None)
        elif len(answer.body) > MAX_ANSWER_BYTES:
            self._unkept.add(1, {"reason": "too_large"})
        elif self._enqueue(claim, answer):
            self._given[claim.entry] = claim.request, answer

    async def run(self) -> None:
        """Write answers until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < _AT_ONCE and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await asyncio.gather(*(self._write(claim, answer) for claim, answer in batch))

    async def flush(self) -> None:
        """Return once all answers given so far are written, or after three seconds."""
        try:
            async with asyncio.timeout(_FLUSHED_WITHIN_S):
                await self._queue.join()
        except TimeoutError:
            _log.warning("answers.not_kept", count=self._queue.qsize())

    async def _again(self, entry: str, record: KeyRecord) -> Claim | KeptAnswer:
        found = await self._bucket.get(entry)
        if found is None:
            raise _in_progress()  # released this very moment
        known = found.value
        _check_same(record.request, known.request)
        if known.answer is not None:
            return self._repeat(known.answer)
        if utc_now() < known.until:
            self._count("in_progress")
            raise _in_progress()
        taken = msgspec.structs.replace(known, until=record.until)
        try:
            revision = await self._bucket.update(entry, taken, found.revision)
        except RevisionConflictError:
            raise _in_progress() from None
        self._count("taken_over")
        _log.info("request.taken_over", seed=str(known.seed))
        return Claim(entry, record.request, known.seed, revision, repeated=True)

    def _repeat(self, answer: KeptAnswer) -> KeptAnswer:
        self._count("repeat")
        return answer

    def _count(self, outcome: str) -> None:
        self._requests.add(1, {"outcome": outcome})

    def _enqueue(self, claim: Claim, answer: KeptAnswer | None) -> bool:
        try:
            self._queue.put_nowait((claim, answer))
        except asyncio.QueueFull:
            self._unkept.add(1, {"reason": "queue_full"})
            return False
        return True

    async def _write(self, claim: Claim, answer: KeptAnswer | None) -> None:
        try:
            if answer is None:
                await self._bucket.delete(claim.entry, claim.revision)
            else:
                record = KeyRecord(
                    request=claim.request, seed=claim.seed, until=utc_now(), answer=answer
                )
                await self._bucket.update(claim.entry, record, claim.revision)
        except (TransientError, PoisonError, RevisionConflictError) as error:
            self._unkept.add(1, {"reason": _reason(error)})
            _log.warning("answer.not_kept", seed=str(claim.seed), error=str(error))
        finally:
            if answer is not None:
                self._given.pop(claim.entry, None)
            self._queue.task_done()


def _reason(error: DecisecError) -> str:
    return "taken_over" if isinstance(error, RevisionConflictError) else "bus"


def _until(wait_s: float) -> datetime:
    return utc_now() + timedelta(seconds=LEASE_S + wait_s)


def _check_same(request: str, known: str) -> None:
    if request != known:
        raise RefusedError(
            ErrorCode.IDEMPOTENCY_KEY_REUSED,
            "This idempotency key belongs to another request: another route or another body.",
        )


def _in_progress() -> RefusedError:
    return RefusedError(
        ErrorCode.REQUEST_IN_PROGRESS,
        "The first request with this idempotency key is not answered yet; ask again.",
        retry_after_s=1.0,
    )
