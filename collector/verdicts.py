"""Declares hosts lost that were silent for the configured time, and found once they caught up.

The collector that works at a host's partition does so. A declaration holds back nothing any more
that usage answers wait for, so it is made only where all of this is so: for that long the stream
has stored no frame of the host, looked at by this collector without interruption; what it had is
in the store; its agent has no heartbeat; and nobody has found the host since it was last heard.
What was read of the bucket goes into the write, which fails if anybody has written since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import nats.errors
import nats.js.errors
import structlog

from collector.absence import Absences
from collector.losses import lost_fact
from collector.messages import event_message
from collector.partition import Partition, Tools
from runtime.audit import audited
from runtime.buckets import Bucket, RevisionConflictError
from runtime.clock import utc_now
from runtime.errors import PoisonError, TransientError
from runtime.transit import on_its_way
from schemas import subjects
from schemas.errors import MalformedMessageError
from schemas.events import HostFound, HostLost
from schemas.frames import decode_frame, replay_of
from schemas.hosts import HostLoss, decode_host_info, decode_host_loss
from schemas.ids import new_id
from schemas.units import NS_PER_MS, NS_PER_S

_log = structlog.get_logger("decisec.verdicts")

_EVERY_S = 1.0
_MOST_BETWEEN_LOOKS_S = 30.0
_STOOD_STILL_S = 10.0
_QUIET_NS = 10 * NS_PER_S
_PAST_END_MS = 120_000
"""A host that has come so far past the end of its last VM has told so, and nobody waits for it."""
_CAUGHT_UP_MS = 60_000
_NO_MESSAGE = 10037
"""JetStream error code: the stream is there, and has no such message."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LastFrame(NamedTuple):
    """The last frame that the stream has of a host.

    Attributes:
        stored_at: By the server's clock; None if it is a replay, which says nothing of the host.
        tick_ms: None if it is no frame.
    """

    sequence: int
    stored_at: datetime | None
    tick_ms: int | None


class Verdicts:
    """Looks at silent hosts, declares them lost and found, and tells of what is declared.

    Args:
        me: This collector.
        tools: Shared with the partitions.
        in_charge: The partition of a host, if this collector works at it.
    """

    def __init__(
        self, me: UUID, tools: Tools, in_charge: Callable[[str], Partition | None]
    ) -> None:
        self._name = f"collector {me}"
        self._tools = tools
        self._in_charge = in_charge
        self._bus = tools.bus
        self.bucket = Bucket(tools.bus, subjects.LOST_HOSTS, decode_host_loss)
        self._heartbeats = Bucket(tools.bus, subjects.HOSTS, decode_host_info)
        self._after_ns = tools.lost_after_ns
        self._look_every_ns = min(self._after_ns // 20, int(_MOST_BETWEEN_LOOKS_S * NS_PER_S))
        self._absences = Absences()
        self._left: set[str] = set()
        self._told: dict[str, UUID] = {}
        self._epoch = tools.bus.epoch
        self._turn_ns = self._looked_ns = self._now_ns()

    async def run(self) -> None:
        """Do so until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.turn()
            except (TransientError, RevisionConflictError, PoisonError) as error:
                self._absences.interrupted()
                _log.warning("verdict.postponed", error=str(error))

    async def turn(self) -> None:
        """Do once what there is to do now.

        Raises:
            TransientError, RevisionConflictError, PoisonError: Some of it could not be done.
        """
        await self._tell()
        await self._take_back()
        if self._after_ns:
            await self._look()

    async def _tell(self, facts: Sequence[HostLost | HostFound] | None = None) -> None:
        """Tell what is declared of the hosts here, each thing once by this collector."""
        losses = self._tools.losses
        self._tools.instruments.losses(standing=len(losses.standing), left=len(self._left))
        for fact in losses.facts(utc_now()) if facts is None else facts:
            if self._in_charge(fact.host_id) is None:
                self._told.pop(fact.host_id, None)
            elif self._told.get(fact.host_id) != fact.event_id:
                message = event_message(fact)
                await self._tools.publisher.publish(
                    message.subject, message.payload, msg_id=message.msg_id
                )
                self._told[fact.host_id] = fact.event_id

    async def _take_back(self) -> None:
        """Find the hosts that a collector declared lost and that have caught up since."""
        for host_id, loss in list(self._tools.losses.standing.items()):
            partition = self._in_charge(host_id)
            if loss.automatic and partition is not None:
                complete_ms = partition.claims.true_of(host_id)
                if complete_ms is not None and self._caught_up(loss, complete_ms):
                    await self._find(host_id, complete_ms)

    def _caught_up(self, loss: HostLoss, complete_ms: int) -> bool:
        now_ms = self._tools.clock.wall_ns() // NS_PER_MS
        return complete_ms >= max(_ms(loss.declared_at), now_ms - _CAUGHT_UP_MS)

    async def _find(self, host_id: str, complete_ms: int) -> None:
        mark = await self.bucket.mark(host_id)
        if mark.value is None or not mark.value.automatic:
            return
        if not self._caught_up(mark.value, complete_ms):
            return
        until = (_EPOCH + timedelta(milliseconds=complete_ms)).isoformat(timespec="seconds")
        reason = f"it has sent all from before {until}"
        async with self._audited("host-found", mark.value, reason):
            await self.bucket.delete(host_id, mark.revision)
        self._tools.instruments.host_found()
        _log.warning("host.declared_found", host=host_id, reason=reason)

    async def _look(self) -> None:
        """Look at the hosts that seem to be silent, and declare those that were so for long."""
        now_ns = self._now_ns()
        stood_still = now_ns - self._turn_ns > int(_STOOD_STILL_S * NS_PER_S)
        if stood_still or self._epoch != self._bus.epoch or not self._bus.connected:
            self._absences.interrupted()
        self._turn_ns, self._epoch = now_ns, self._bus.epoch
        if now_ns - self._looked_ns < self._look_every_ns:
            return
        self._looked_ns = now_ns
        hosts = {host for host in self._tools.expected.hosts if self._seems_silent(host, now_ns)}
        self._absences.keep(hosts)
        self._left &= hosts
        for host_id in sorted(hosts):
            try:
                await self._look_at(host_id)
            except (RevisionConflictError, PoisonError) as error:
                _log.warning("verdict.postponed", host=host_id, error=str(error))
            self._turn_ns = self._now_ns()

    def _seems_silent(self, host_id: str, now_ns: int) -> bool:
        """Whether the stream is to be asked: it is what counts, and costs a request."""
        partition = self._in_charge(host_id)
        if partition is None or host_id in self._tools.losses.standing:
            return False
        quiet_ns = partition.pipeline.silence.quiet_ns(host_id, now_ns)
        return quiet_ns is None or quiet_ns >= min(_QUIET_NS, self._after_ns // 2)

    async def _look_at(self, host_id: str) -> None:
        asked_ns = self._now_ns()
        last = await self._last_frame(host_id)
        if self._is_done(host_id, last):
            self._absences.heard(host_id)
            return
        silent_ns = self._absences.look(
            host_id,
            last.sequence if last else 0,
            asked_ns=asked_ns,
            answered_ns=self._now_ns(),
        )
        if silent_ns < self._after_ns:
            return
        if await self._beats(host_id):
            self._absences.heard(host_id)
            _log.warning("host.alive_without_frames", host=host_id)
            return
        if behind := await on_its_way(self._bus, host_id):
            # Answers would pass what is there and not stored yet.
            _log.warning("verdict.waits", host=host_id, consumers=behind[:20])
            return
        await self._declare(host_id, last, silent_ns)

    async def _beats(self, host_id: str) -> bool:
        """Whether the host's agent lives; its heartbeats go after half a minute."""
        try:
            return await self._heartbeats.get(host_id) is not None
        except PoisonError:
            return True  # of a newer version

    def _is_done(self, host_id: str, last: LastFrame | None) -> bool:
        """Whether nobody waits for a host any more: its VMs are gone, and it has told so."""
        if host_id not in self._tools.expected.hosts:
            return True
        end = self._tools.expected.end(host_id)
        if end is None:
            return False
        past_end_ms = _ms(end) + _PAST_END_MS
        return last is None or (last.tick_ms is not None and last.tick_ms > past_end_ms)

    async def _declare(self, host_id: str, last: LastFrame | None, silent_ns: int) -> None:
        mark = await self.bucket.mark(host_id)
        if mark.value is not None:
            return  # the mirror is a moment behind
        heard_at = last.stored_at if last else None
        if mark.at is not None and (heard_at is None or heard_at <= mark.at):
            if host_id not in self._left:
                self._left.add(host_id)
                _log.warning("host.left_to_operator", host=host_id, found_at=mark.at.isoformat())
            return
        reason = f"no frame for {silent_ns // NS_PER_S} s"
        if heard_at is not None:
            reason += f"; the last one came at {heard_at.isoformat(timespec='seconds')}"
        loss = HostLoss(
            host_id=host_id,
            reason=reason,
            requested_by=self._name,
            declared_at=utc_now(),
            automatic=True,
        )
        async with self._audited("host-lost", loss, reason):
            await self.bucket.update(host_id, loss, mark.revision)
        self._tools.instruments.host_lost()
        _log.warning("host.declared_lost", host=host_id, reason=reason)
        # The mirror says so in a moment; should somebody find the host before, it is told all the
        # same.
        self._tools.losses.change(host_id, loss)
        await self._tell([lost_fact(loss)])

    def _audited(
        self, action: str, loss: HostLoss, reason: str
    ) -> AbstractAsyncContextManager[dict[str, str]]:
        return audited(
            self._bus,
            act_id=new_id(),
            actor=self._name,
            action=action,
            target=loss.host_id,
            reason=reason,
            details={"lost_at": loss.declared_at.isoformat(), "automatic": "true"},
        )

    async def _last_frame(self, host_id: str) -> LastFrame | None:
        """The last one, wherever it lies: the stream may have been parted since.

        Raises:
            TransientError: The stream does not say.
        """
        found: list[LastFrame] = []
        for subject in (subjects.metrics_raw_anywhere(host_id), subjects.metrics_raw(host_id)):
            try:
                last = await self._bus.js.get_last_msg(subjects.METRICS_RAW, subject)
            except nats.js.errors.NotFoundError as error:
                if error.err_code != _NO_MESSAGE:
                    raise TransientError(f"no word about frames of {host_id}: {error}") from error
                continue
            except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
                raise TransientError(f"no word about frames of {host_id}: {error}") from error
            stored_at = None if replay_of(last.headers or {}) else last.time
            found.append(LastFrame(last.seq or 0, stored_at, _tick_ms(last.data or b"")))
        return max(found, default=None, key=lambda frame: frame.sequence)

    def _now_ns(self) -> int:
        return self._tools.clock.monotonic_ns()


def _tick_ms(data: bytes) -> int | None:
    try:
        return decode_frame(data).tick_ms
    except MalformedMessageError:
        return None


def _ms(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(milliseconds=1)
