"""What one VM holds of its host's network, as its record keeps it."""

from __future__ import annotations

import msgspec

from vm_agent.network.attachment import tap_of

_MAC_START = (0x06, 0xDC)
"""Locally administered, unicast."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM holds; see `vm_agent.network.attachment.Attachment`.

    Attributes:
        prefix: A /128 or a /64.
        ipv4: Empty for none.
    """

    slot: int
    tenant: int
    prefix: str
    ipv4: str = ""

    @property
    def mac(self) -> str:
        """The guest's."""
        return mac_of(self.slot)

    @property
    def tap(self) -> str:
        """The interface's name in the fabric."""
        return tap_of(self.slot)

    @property
    def addresses(self) -> tuple[str, ...]:
        """For the owner: one address plainly, a network as such."""
        return tuple(one for one in (self.prefix.removesuffix("/128"), self.ipv4) if one)


def mac_of(slot: int) -> str:
    """The MAC of a slot's guest."""
    return ":".join(f"{byte:02x}" for byte in (*_MAC_START, *slot.to_bytes(4, "big")))
