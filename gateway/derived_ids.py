"""Ids that follow from another one, so that doing a thing again gives it no second id."""

from __future__ import annotations

from hashlib import blake2b
from uuid import UUID


def derived(base: UUID, what: bytes, *, later_ms: int = 0) -> UUID:
    """A UUIDv7 of the base's time, or so much later, whose rest follows from base and `what`."""
    rest = int.from_bytes(blake2b(base.bytes + what, digest_size=10).digest(), "big")
    value = ((base.int >> 80) + later_ms << 80) | rest
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return UUID(int=value)
