"""What customers are told instead of a host's name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.auth import CUSTOMER_SCOPES, Principal, Scope
from gateway.host_names import HostNames
from runtime.clock import utc_now
from schemas.ids import new_id, token
from schemas.vms import VmRecord, VmSpec
from tests.support.nats import bus_with_streams


def record(customer_id: str, host_id: str) -> VmRecord:
    return VmRecord(
        vm_id=new_id(),
        customer_id=customer_id,
        host_id=host_id,
        spec=VmSpec(image="tiny"),
        created_at=utc_now(),
    )


async def test_a_host_has_one_name_for_each_customer(tmp_path: Path) -> None:
    """Through all gateways, at all times; another customer's says nothing, and operators see it."""
    async with bus_with_streams(tmp_path) as (_, bus):
        one, two = HostNames(bus), HostNames(bus)
        with pytest.raises(RuntimeError, match="has not been read"):
            one.told("acme", "h1")
        await asyncio.gather(one.synced(), two.synced())
    acme = Principal("ann", "acme", CUSTOMER_SCOPES)
    bolt = Principal("bob", "bolt", CUSTOMER_SCOPES)
    operator = Principal("eve", "acme", CUSTOMER_SCOPES | {Scope.ADMIN})
    name = one.naming(acme)(record("acme", "h1"))
    assert token(name) == name
    assert len(name) == 29
    assert two.naming(acme)(record("acme", "h1")) == name
    assert one.naming(acme)(record("acme", "h2")) != name
    assert one.naming(bolt)(record("bolt", "h1")) != name
    assert one.naming(operator)(record("acme", "h1")) == "h1"
    # No customer and host together spell another pair.
    assert one.told("acme", "b-h1") != one.told("acme-b", "h1")
    names = {one.told("acme", host_id) for host_id in ("h1", "h2")}
    assert set(one.all(acme, ("h2", "h1"))) == names
    assert one.all(operator, ("h2", "h1")) == ("h1", "h2")
