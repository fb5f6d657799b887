"""All cases of the packet suite."""

from tests.network.cases import (
    headers,
    inbound,
    ipv4,
    legitimate,
    link,
    neighbours,
    offload,
    rates,
    sources,
    tenants,
)
from tests.network.cases.base import Case

CASES: list[Case] = [
    *legitimate.CASES,
    *link.CASES,
    *sources.CASES,
    *neighbours.CASES,
    *headers.CASES,
    *ipv4.CASES,
    *tenants.CASES,
    *inbound.CASES,
    *offload.CASES,
    *rates.CASES,
]

__all__ = ["CASES"]
