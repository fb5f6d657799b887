"""Where the keys come from that tokens are checked with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joserfc.jwk import Key, OctKey

from gateway.settings import GatewaySettings
from runtime.errors import SettingsError

MIN_HMAC_KEY_BYTES = 32
"""RFC 7518, section 3.2: a key of the size of the hash output or larger."""


class UnknownKeyError(LookupError):
    """The token names a key that this source does not have."""


class KeySource(ABC):
    """Gives the key for a token. Each source pins its own algorithms.

    Pinning is what makes algorithm confusion impossible: a source of RSA keys never lets an
    HMAC token through, whatever its header says.
    """

    @property
    @abstractmethod
    def algorithms(self) -> tuple[str, ...]:
        """The JWS algorithms that tokens may use."""

    @abstractmethod
    async def key_for(self, header: Mapping[str, Any]) -> Key:
        """The key for a token with this (not yet trusted) header.

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
        self._key = OctKey.import_key(key)
        self._key_id = key_id

    @property
    def algorithms(self) -> tuple[str, ...]:
        """HS256 only."""
        return ("HS256",)

    async def key_for(self, header: Mapping[str, Any]) -> Key:
        """The one key, unless the token names another."""
        if header.get("kid", self._key_id) != self._key_id:
            raise UnknownKeyError("no such kid")
        return self._key


def key_source(settings: GatewaySettings) -> KeySource:
    """The source that the settings ask for.

    Raises:
        SettingsError: There is no key, or it cannot be read or is too short.
    """
    if bool(settings.jwt_key) == bool(settings.jwt_key_file):
        raise SettingsError(
            "set exactly one of DECISEC_GATEWAY_JWT_KEY and DECISEC_GATEWAY_JWT_KEY_FILE"
        )
    key, variable = settings.jwt_key.encode(), "DECISEC_GATEWAY_JWT_KEY"
    if settings.jwt_key_file:
        variable = "DECISEC_GATEWAY_JWT_KEY_FILE"
        try:
            key = Path(settings.jwt_key_file).read_bytes().strip()
        except OSError as error:
            raise SettingsError(
                f"{variable}: {settings.jwt_key_file} cannot be read: {error.strerror}"
            ) from error
    try:
        return StaticHmacKey(key, settings.jwt_key_id)
    except ValueError as error:
        raise SettingsError(f"{variable}: {error}") from error
