"""The keys that tokens are checked with, each pinned to its one algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from joserfc.jwk import Key, OctKey
from joserfc.jws import JWSRegistry

from gateway.compact import CompactToken

MIN_HMAC_KEY_BYTES = 32
"""RFC 7518, section 3.2: a key of the size of the hash output or larger."""


class UnknownKeyError(LookupError):
    """The token names a key that this source does not have, or not for that algorithm."""


@dataclass(frozen=True, slots=True)
class PinnedKey:
    """A key, and the one algorithm that it is for.

    Attributes:
        algorithm: Name of a JWS algorithm. What a token's header says of it changes nothing.
    """

    algorithm: str
    key: Key

    def verifies(self, token: CompactToken) -> bool:
        """Whether the token is signed with this key."""
        # Not by the library's own choice of an algorithm: it follows the header.
        algorithm = JWSRegistry.algorithms[self.algorithm]
        try:
            return token.algorithm == self.algorithm and algorithm.verify(
                token.signed, token.signature, self.key
            )
        except ValueError:
            # A signature that is no number, or of no possible size.
            return False


class KeySource(ABC):
    """Gives the key for a token. Each source pins its own algorithms.

    Pinning is what makes algorithm confusion impossible: a source of RSA keys never lets an
    HMAC token through, whatever its header says.
    """

    @abstractmethod
    async def run(self) -> None:
        """Keep the keys up to date until cancelled, where there is something to keep."""

    @abstractmethod
    async def synced(self) -> None:
        """Return once there are keys."""

    @property
    @abstractmethod
    def generation(self) -> int:
        """Another number whenever a key may have gone: tokens verified before are checked again.

        Raises:
            TransientError: The keys cannot be relied on at the moment.
        """

    @abstractmethod
    async def key_for(self, token: CompactToken) -> PinnedKey:
        """The key for a token of which nothing is trusted yet.

        Raises:
            UnknownKeyError: There is none.
            TransientError: The keys cannot be had at the moment.
        """


class StaticHmacKey(KeySource):
    """One HS256 key, for development.

    Args:
        key: At least 32 bytes.
        key_id: The only `kid` that is accepted; a token without `kid` is accepted as well.

    Raises:
        ValueError: The key is too short. The message does not show it.
    """

    def __init__(self, key: bytes, key_id: str = "dev") -> None:
        if len(key) < MIN_HMAC_KEY_BYTES:
            raise ValueError(f"an HS256 key needs at least {MIN_HMAC_KEY_BYTES} bytes")
        self._key = PinnedKey("HS256", OctKey.import_key(key))
        self._key_id = key_id

    async def run(self) -> None:
        """There is nothing to do."""

    async def synced(self) -> None:
        """Return at once."""

    @property
    def generation(self) -> int:
        """Always the same."""
        return 0

    async def key_for(self, token: CompactToken) -> PinnedKey:
        """The one key, unless the token names another, or another algorithm."""
        if token.key_id not in (None, self._key_id) or token.algorithm != self._key.algorithm:
            raise UnknownKeyError("no such kid")
        return self._key
