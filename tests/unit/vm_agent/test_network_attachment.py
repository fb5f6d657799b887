"""A VM on the fabric: names and addresses that follow from others."""

from __future__ import annotations

from ipaddress import IPv6Address
from uuid import UUID

from vm_agent.network.attachment import Attachment


def _attachment(slot: int, mac: str) -> Attachment:
    return Attachment(slot=slot, vm_id=UUID(int=1), customer_id="acme", tenant=7, mac=mac)


def test_the_highest_slot_still_makes_a_name_that_the_kernel_takes() -> None:
    """IFNAMSIZ is 16, with the zero at the end."""
    tap = _attachment(2**32 - 1, "06:00:00:00:00:01").tap
    assert (tap, len(tap) <= 15) == ("vmffffffff", True)


def test_the_link_local_address_is_the_one_that_a_guest_gives_itself() -> None:
    """By EUI-64: ff:fe in the middle, the second lowest bit of the first octet turned over."""
    attachment = _attachment(1, "06:0a:0b:0c:0d:0e")
    assert attachment.link_local == IPv6Address("fe80::40a:bff:fe0c:d0e")
