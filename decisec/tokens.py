"""Revoking tokens, as operators do it: on the bus, audited."""

from __future__ import annotations

import asyncio
from datetime import datetime

from decisec.streams.acts import audited
from runtime.buckets import Bucket, RevisionConflictError
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from schemas.ids import new_id
from schemas.tokens import REVOKED_TOKENS, Revocation, RevokedBy, decode_revocation

_ANSWER_WITHIN_S = 10.0


class TokenRevocations:
    """Reads and writes the bucket `revoked_tokens`, which every gateway follows.

    Every call raises TransientError when NATS or the bucket cannot be reached, or is full.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, REVOKED_TOKENS, decode_revocation)

    async def all(self) -> list[Revocation]:
        """What is revoked, oldest first. Entries go after 31 days, when no such token lives."""
        # Asked for first, since reading all of a bucket waits for one that is not there.
        await self._bucket.store()
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                found = await self._bucket.all()
        except TimeoutError as error:
            raise TransientError(f"{REVOKED_TOKENS} could not be read in time") from error
        return sorted(found.values(), key=lambda revocation: revocation.revoked_at)

    async def revoke(
        self,
        by: RevokedBy,
        value: str,
        *,
        issued_before: datetime | None,
        reason: str,
        requested_by: str,
    ) -> tuple[Revocation, bool]:
        """Let no gateway take a token, or those of somebody that were issued before a time.

        Returns:
            The revocation that stands, and whether it is a new one. One that says as much or
            more already is left as it is: none is ever made weaker.

        Raises:
            InvalidIdError: The customer is none.
        """
        wanted = Revocation(
            by=by,
            value=value,
            issued_before=issued_before,
            reason=reason,
            requested_by=requested_by,
            revoked_at=utc_now(),
        )
        entry = await self._bucket.get(wanted.key)
        if entry is not None and not _says_more(wanted, entry.value):
            return entry.value, False
        async with audited(
            self._bus,
            act_id=new_id(),
            actor=requested_by,
            action="token-revoke",
            target=f"{by.value} {value}",
            reason=reason,
            details={"issued_before": issued_before.isoformat()} if issued_before else {},
        ):
            try:
                if entry is None:
                    await self._bucket.create(wanted.key, wanted)
                else:
                    await self._bucket.update(wanted.key, wanted, entry.revision)
            except RevisionConflictError as error:
                raise TransientError("somebody else revokes the same just now; repeat") from error
        return wanted, True


def _says_more(wanted: Revocation, stands: Revocation) -> bool:
    if stands.issued_before is None:
        return False
    return wanted.issued_before is None or wanted.issued_before > stands.issued_before
