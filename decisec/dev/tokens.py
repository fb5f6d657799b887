"""Development tokens: what `decisec dev` hands out and the gateway of the same stack accepts."""

from __future__ import annotations

from decisec.devkit.tokens import mint

TTL_S = 7 * 24 * 3600
"""A development session may last; the key never leaves its state directory."""


def development_token(key: bytes, customer: str) -> str:
    """A token with all scopes of one customer."""
    return mint(key, customer, ttl_s=TTL_S, subject="developer")
