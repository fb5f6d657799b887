"""What a router advertisement says, byte by byte, and when it is said again."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address, IPv6Network

from schemas.ids import new_id
from vm_agent.network.advertising import Advertiser, advertisement
from vm_agent.network.attachment import Attachment
from vm_agent.network.lease import mac_of

SERVERS = (IPv6Address("2001:db8::53"), IPv6Address("2001:db8::54"))


def options(message: bytes) -> dict[int, bytes]:
    """The options by type (RFC 4861, section 4.6)."""
    found = {}
    rest = message[16:]
    while rest:
        kind, size = rest[0], 8 * rest[1]
        assert size
        found[kind] = rest[:size]
        rest = rest[size:]
    return found


def test_a_guest_is_to_make_its_address_of_the_prefix_and_to_send_all_to_the_host() -> None:
    """The prefix is autonomous, for ever, and not on the link."""
    message = advertisement(IPv6Network("2001:db8:1::4dc:ff:fe00:7/128"), 1400, SERVERS)
    kind, code, _, hops, flags, lifetime_s, _, _ = struct.unpack_from("!BBHBBHII", message)
    assert (kind, code, hops, flags, lifetime_s) == (134, 0, 64, 0, 65_535)
    found = options(message)
    assert found.keys() == {1, 3, 5, 25}
    assert found[1][2:] == bytes.fromhex("02dc00000001")
    length, how, valid_s, preferred_s = struct.unpack_from("!BBII", found[3], 2)
    assert (length, how, valid_s, preferred_s) == (64, 0x40, 2**32 - 1, 2**32 - 1)
    assert IPv6Address(found[3][16:]) == IPv6Address("2001:db8:1::")
    assert struct.unpack_from("!I", found[5], 4) == (1400,)
    assert found[25][8:] == SERVERS[0].packed + SERVERS[1].packed


def test_a_network_of_its_own_is_told_as_it_is() -> None:
    """And without name servers there is no word of them."""
    found = options(advertisement(IPv6Network("2001:db8:1:5::/64"), 1500, ()))
    assert found.keys() == {1, 3, 5}
    assert IPv6Address(found[3][16:]) == IPv6Address("2001:db8:1:5::")


def test_whom_nobody_knows_to_have_been_told_is_told_within_three_hours() -> None:
    """At moments of chance, so that a thousand are not told at once; without a socket nobody is."""
    vm = Attachment(
        slot=7, vm_id=new_id(), customer_id="acme", tenant=1 << 20, mac=mac_of(7),
        addresses=(IPv6Network("2001:db8::7/128"),),
    )  # fmt: skip
    advertiser = Advertiser({vm.index: vm}.get, 1500, ())
    assert advertiser.refresh([vm], 0.0) == 0
    assert advertiser.refresh([vm], 4 * 3600.0) == 0
    advertiser.close()
