"""The act that a request is part of: what it sets out to change, and for whom.

A door enters an act before it calls a service. The service needs no argument for it: ids that it
makes by `mint` are the same when the same request comes again, and `repeated` says that an earlier
try may have come some way already. Outside an act `mint` makes a fresh id.
"""

from __future__ import annotations

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
        seed: The ids of all that it makes follow from this.
        repeated: An earlier try of the same request was begun and got no answer.
        claim: Of the request's key, until it is settled; None for a request without one.
    """

    seed: UUID = field(default_factory=new_id)
    repeated: bool = False
    claim: Claim | None = None

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


def mint(what: str) -> UUID:
    """The id of one thing that this request makes, `what` being its name within the request."""
    act = _CURRENT.get()
    return new_id() if act is None else derived(act.seed, what.encode())


def repeated() -> bool:
    """Whether an earlier try of this request may have done a part of it."""
    act = _CURRENT.get()
    return act is not None and act.repeated
