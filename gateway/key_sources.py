"""Which keys the settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gateway.issuer_keys import IssuerKeys
from gateway.key_documents import key_document
from gateway.keys import KeySource, StaticHmacKey
from gateway.settings import GatewaySettings
from runtime.errors import SettingsError

_DEVELOPMENT_ISSUER = GatewaySettings().jwt_issuer


def key_source(
    settings: GatewaySettings, tell: Callable[[str], None] = lambda _: None
) -> KeySource:
    """The source that the settings ask for.

    Args:
        settings: Of the gateway.
        tell: Called with what is wrong with the keys, or with an empty text once nothing is.

    Raises:
        SettingsError: There is no key, or it cannot be read or is too short; or the address of
            the issuer's keys is none.
    """
    if sum(map(bool, (settings.jwks, settings.jwt_key, settings.jwt_key_file))) != 1:
        raise SettingsError(
            "set exactly one of DECISEC_GATEWAY_JWKS and, for development, "
            "DECISEC_GATEWAY_JWT_KEY and DECISEC_GATEWAY_JWT_KEY_FILE"
        )
    if settings.jwks:
        return _issuer_keys(settings, tell)
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


def _issuer_keys(settings: GatewaySettings, tell: Callable[[str], None]) -> IssuerKeys:
    document = key_document(
        settings.jwks, timeout_s=settings.jwks_timeout_s, ca_file=settings.jwks_ca_file
    )
    if "://" in settings.jwks and settings.jwt_issuer == _DEVELOPMENT_ISSUER:
        raise SettingsError(
            "DECISEC_GATEWAY_JWT_ISSUER: say which issuer's keys DECISEC_GATEWAY_JWKS are"
        )
    if settings.jwks_max_stale_s < settings.jwks_refresh_s + settings.jwks_timeout_s:
        raise SettingsError(
            "DECISEC_GATEWAY_JWKS_MAX_STALE_S: must be more than DECISEC_GATEWAY_JWKS_REFRESH_S "
            "and DECISEC_GATEWAY_JWKS_TIMEOUT_S together, or keys are too old before they are read"
        )
    return IssuerKeys(
        document,
        refresh_s=settings.jwks_refresh_s,
        max_stale_s=settings.jwks_max_stale_s,
        wait_s=2 * settings.jwks_timeout_s,
        tell=tell,
    )
