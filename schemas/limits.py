"""How fast the API may be used, and what gateways tell each other about it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import msgspec

from schemas.codec import decoder

PerSecond = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Burst = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Spent = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
_Short = Annotated[float, msgspec.Meta(ge=0, le=1_000_000_000)]
_Round = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Member = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class RouteClass(StrEnum):
    """What a request costs: each class has a bucket of its own."""

    READS = "reads"
    MUTATIONS = "mutations"
    EXPENSIVE = "expensive"


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket.

    Attributes:
        per_s: Tokens that come back in a second; 0 for no limit.
        burst: Tokens that it holds at most.
    """

    per_s: PerSecond
    burst: Burst = 1


class ApiRates(msgspec.Struct, frozen=True, kw_only=True):
    """A customer's own rates; where there is none, the gateway's default holds."""

    reads: Rate | None = None
    mutations: Rate | None = None
    expensive: Rate | None = None


class SpendReport(msgspec.Struct, frozen=True, kw_only=True):
    """On `gateway.limits.spent`: what a gateway has admitted since its last report.

    Attributes:
        member: The gateway's own name, new at each start.
        round: Everybody tells once in each round.
        spent: Tokens by bucket.
        leaving: The gateway stops.
    """

    member: _Member
    round: _Round
    spent: dict[str, _Spent] = msgspec.field(default_factory=dict)
    leaving: bool = False


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """Answer on `gateway.limits.levels`: how the buckets stand, for a gateway that starts.

    Attributes:
        members: The gateways that share the buckets.
        short: Tokens that are missing, by bucket; buckets that are full are left out.
    """

    round: _Round
    members: tuple[_Member, ...]
    short: dict[str, _Short] = msgspec.field(default_factory=dict)


decode_spend_report: Callable[[bytes], SpendReport] = decoder(SpendReport)
decode_levels: Callable[[bytes], Levels] = decoder(Levels)
