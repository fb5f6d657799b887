"""The act that a request is part of: what it sets out to change, for whom, and from where.

A door enters an act before it calls a service. The service needs no argument for it:

- `commit` is called before its first effect, and tells the audit trail. A door calls it itself for
  routes that do not say that their service does.
- Ids that it makes by `mint` are the same when the same request comes again, and `repeated` says
  that an earlier try may have come some way already.

Outside an act, in what goes on in the background, these do nothing and mint fresh ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from gateway.derived_ids import derived
from gateway.idempotency import Claim
from schemas.ids import new_id


@dataclass(slots=True)
class Act:
    """One request that may change something.

    Attributes:
        actor: Who asks: the token's subject.
        action: What for: a token.
        target: What is to be changed, for people.
        reason: Why, in one line, where that is asked for.
        door: `http` or `bus`.
        address: Where the request comes from, if the door knows it.
        begin: Tells the trail of this act.
        operation_id: The operation that tells how it goes on.
        committed: The trail has been told.
        begun: The acknowledgement of the trail's entry.
        seed: The ids of all that it makes follow from this.
        repeated: An earlier try of the same request was begun and got no answer.
        claim: Of the request's key, until it is settled; None for a request without one.
    """

    customer_id: str
    actor: str
    action: str
    target: str
    door: str
    address: str
    trace_id: str
    begin: Callable[[Act], Awaitable[None]]
    act_id: UUID = field(default_factory=new_id)
    operation_id: UUID | None = None
    committed: bool = False
    begun: asyncio.Future[None] | None = None
    seed: UUID = field(default_factory=new_id)
    repeated: bool = False
    claim: Claim | None = None
    reason: str = ""

    def take(self, claim: Claim) -> None:
        """Go under a claimed key."""
        self.seed, self.repeated, self.claim = claim.seed, claim.repeated, claim


_CURRENT: ContextVar[Act | None] = ContextVar("act", default=None)


def enter(act: Act) -> None:
    """Make this the act of the running task, and of the tasks that it starts."""
    _CURRENT.set(act)


def current() -> Act | None:
    """The act of the running task."""
    return _CURRENT.get()


async def commit(*, target: str = "", operation_id: UUID | None = None, reason: str = "") -> None:
    """Tell of the running act before its first effect; later calls do nothing.

    Args:
        target: What is changed, where the door could not know it.
        operation_id: The operation that tells how it goes on.
        reason: What the caller has given as one.

    Raises:
        RefusedError: UNAVAILABLE: it could not be told of, and must not be done.
    """
    act = _CURRENT.get()
    if act is None or act.committed:
        return
    act.target = target or act.target
    act.operation_id = operation_id
    act.reason = reason
    await act.begin(act)
    act.committed = True


def mint(what: str) -> UUID:
    """The id of one thing that this request makes, `what` being its name within the request."""
    act = _CURRENT.get()
    return new_id() if act is None else derived(act.seed, what.encode())


def repeated() -> bool:
    """Whether an earlier try of this request may have done a part of it."""
    act = _CURRENT.get()
    return act is not None and act.repeated
