"""How often a customer and an address may ask: rates by class, the same at every door."""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.errors import RefusedError
from gateway.rates import Verdict
from gateway.settings import GatewaySettings
from gateway.sharing import Sharing
from runtime.bus import Bus
from runtime.telemetry import meter
from schemas.errors import ErrorCode
from schemas.hosts import Customer
from schemas.limits import ApiRates, Rate, RouteClass

_EXPENSIVE = ("/v1/usage", "/v1/metrics", "/v1/events", "/v1/audit")
_EXPENSIVE_TAILS = ("/console", "/metrics")
_PROBES = "/network-check"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_EXPENSIVE_VERBS = frozenset({"console", "check-network", "usage", "metrics", "events", "audit"})


def class_of_route(method: str, template: str) -> RouteClass:
    """What a request to a route costs.

    Args:
        method: As in the request.
        template: The route's path, or the request's own; ids in it do not matter.
    """
    if template.endswith(_PROBES):
        # It changes nothing, and a host works for it.
        return RouteClass.EXPENSIVE
    if method not in _SAFE:
        return RouteClass.MUTATIONS
    if template.startswith(_EXPENSIVE) or template.endswith(_EXPENSIVE_TAILS):
        # Another service works for these, or a connection stays open.
        return RouteClass.EXPENSIVE
    return RouteClass.READS


def class_of_verb(verb: str, *, mutates: bool) -> RouteClass:
    """What a request on `vm.req.<customer>.<verb>` costs."""
    if verb in _EXPENSIVE_VERBS:
        return RouteClass.EXPENSIVE
    return RouteClass.MUTATIONS if mutates else RouteClass.READS


def rate_headers(verdict: Verdict) -> dict[str, str]:
    """`RateLimit-*`, as in draft-ietf-httpapi-ratelimit-headers-06: the last with three fields."""
    return {
        "RateLimit-Limit": str(verdict.limit),
        "RateLimit-Remaining": str(verdict.remaining),
        "RateLimit-Reset": str(verdict.reset_s),
    }


class Limits:
    """Judges requests.

    Args:
        bus: Over which the gateways share what was spent.
        settings: The rates of whoever has none of its own.
        customer_of: The operator's entry of a customer, if there is one.
    """

    def __init__(
        self, bus: Bus, settings: GatewaySettings, customer_of: Callable[[str], Customer | None]
    ) -> None:
        self._customer_of = customer_of
        self._defaults = {
            RouteClass.READS: Rate(per_s=settings.reads_per_s, burst=settings.reads_burst),
            RouteClass.MUTATIONS: Rate(
                per_s=settings.mutations_per_s, burst=settings.mutations_burst
            ),
            RouteClass.EXPENSIVE: Rate(
                per_s=settings.expensive_per_s, burst=settings.expensive_burst
            ),
        }
        self._per_address = Rate(per_s=settings.address_per_s, burst=settings.address_burst)
        self.sharing = Sharing(bus, self._rate_of)
        self._refused = meter().create_counter(
            "decisec_rate_limited", description="Requests refused for their rate, by class"
        )

    def admit(self, customer_id: str, kind: RouteClass) -> Verdict | None:
        """Count a customer's request; None where there is no limit.

        Raises:
            RefusedError: RATE_LIMITED.
        """
        rate = self._rate(customer_id, kind)
        if rate.per_s <= 0:
            return None
        verdict = self.sharing.take(f"{customer_id}.{kind.value}", rate)
        if not verdict.admitted:
            self._refused.add(1, {"class": kind.value})
            raise _limited(verdict, f"Too many requests ({kind.value})")
        return verdict

    def admit_address(self, address: str) -> None:
        """Count a request without a good token.

        Raises:
            RefusedError: RATE_LIMITED.
        """
        if self._per_address.per_s <= 0:
            return
        verdict = self.sharing.take(f"@{address}", self._per_address)
        if not verdict.admitted:
            self._refused.add(1, {"class": "address"})
            raise _limited(verdict, "Too many requests without a valid token from this address")

    def _rate(self, customer_id: str, kind: RouteClass) -> Rate:
        customer = self._customer_of(customer_id)
        own: ApiRates | None = customer.rates if customer else None
        return (getattr(own, kind.value) if own else None) or self._defaults[kind]

    def _rate_of(self, key: str) -> Rate | None:
        if key.startswith("@"):
            return self._per_address
        customer_id, _, kind = key.rpartition(".")
        if not customer_id or kind not in RouteClass.__members__.values():
            return None
        return self._rate(customer_id, RouteClass(kind))


def _limited(verdict: Verdict, what: str) -> RefusedError:
    wait_s = max(1, math.ceil(verdict.retry_after_s))
    return RefusedError(
        ErrorCode.RATE_LIMITED,
        f"{what}. Try again in {wait_s} s.",
        retry_after_s=wait_s,
        headers=rate_headers(verdict),
    )
