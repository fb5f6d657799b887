"""Tokens whose signatures have been verified, so that each is verified once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from gateway.principal import Principal

MAX_TOKENS = 16_384
"""Some 10 MB."""


class VerifiedTokens:
    """Principals by the hash of their token; the one not asked for longest goes first.

    It remembers signatures and nothing else: whether a token has expired or was revoked is asked
    at each use. Only the hash is kept, so that a dump of the memory holds fewer tokens.

    Args:
        most: Tokens.
    """

    def __init__(self, most: int = MAX_TOKENS) -> None:
        self._most = most
        self._found: OrderedDict[bytes, tuple[int, Principal]] = OrderedDict()

    def __len__(self) -> int:
        """Tokens that are remembered."""
        return len(self._found)

    @staticmethod
    def name(text: str) -> bytes:
        """What a token is remembered by."""
        # A text that is no token is refused later on; here it only must not raise.
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def get(self, name: bytes, generation: int) -> Principal | None:
        """The principal, if its token was verified by keys of this generation."""
        found = self._found.get(name)
        if found is None or found[0] != generation:
            return None
        self._found.move_to_end(name)
        return found[1]

    def put(self, name: bytes, generation: int, principal: Principal) -> None:
        """Remember a token that has just been verified."""
        self._found[name] = (generation, principal)
        self._found.move_to_end(name)
        if len(self._found) > self._most:
            self._found.popitem(last=False)

    def forget(self, name: bytes) -> None:
        """Forget a token that is of no use any more."""
        self._found.pop(name, None)
