"""Where requests come from, and what they cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.addresses import Addresses
from gateway.limits import class_of_route, class_of_verb
from runtime.errors import FatalError
from schemas.limits import RouteClass


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.1, garbage"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("", [], "unknown"),
    ],
)
def test_only_what_trusted_proxies_wrote_counts(
    peer: str, forwarded: list[str], address: str
) -> None:
    """From the right, up to the first who is no proxy of ours."""
    assert Addresses("10.0.0.0/8").of(peer, forwarded) == address


@given(st.text(), st.lists(st.text()))
def test_any_header_gives_some_address(peer: str, forwarded: list[str]) -> None:
    """Nothing that a caller sends is an error."""
    assert Addresses("0.0.0.0/0, ::/0").of(peer, forwarded)
    assert Addresses("0.0.0.0/0").of("192.0.2.1", [*forwarded, "x" * 100_000]) == "192.0.2.1"


def test_a_proxy_network_that_is_none_stops_the_start() -> None:
    """The error names the setting."""
    with pytest.raises(FatalError, match="trusted_proxies"):
        Addresses("10.0.0.0/8, proxy.internal")


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/v1/vms", RouteClass.READS),
        ("HEAD", "/v1/vms/x", RouteClass.READS),
        ("POST", "/v1/vms", RouteClass.MUTATIONS),
        ("PATCH", "/v1/vms/x", RouteClass.MUTATIONS),
        ("DELETE", "/v1/vms/x", RouteClass.MUTATIONS),
        ("ANYTHING", "/v1/usage", RouteClass.MUTATIONS),
        ("GET", "/v1/usage", RouteClass.EXPENSIVE),
        ("GET", "/v1/vms/x/console", RouteClass.EXPENSIVE),
        ("GET", "/v1/events", RouteClass.EXPENSIVE),
        ("POST", "/v1/vms/x/network-check", RouteClass.EXPENSIVE),
    ],
)
def test_a_route_has_a_class(method: str, path: str, kind: RouteClass) -> None:
    """By method, and by who works for it."""
    assert class_of_route(method, path) is kind


def test_a_verb_on_the_bus_has_the_class_of_its_route() -> None:
    """By what it does, and by who works for it."""
    assert class_of_verb("get", mutates=False) is RouteClass.READS
    assert class_of_verb("console", mutates=False) is RouteClass.EXPENSIVE
    assert class_of_verb("check-network", mutates=True) is RouteClass.EXPENSIVE
    for verb in ("create", "boot", "delete", "unknown"):
        assert class_of_verb(verb, mutates=True) is RouteClass.MUTATIONS
