"""Tokens: good ones give a principal, bad ones all give the same answer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import Authenticator, Scope
from gateway.errors import RefusedError
from gateway.key_sources import key_source
from gateway.keys import StaticHmacKey
from gateway.settings import GatewaySettings
from runtime.errors import SettingsError
from schemas.errors import ErrorCode
from tests.support.revocations import Revoked
from tests.support.tokens import KEY, bad_tokens, bearer, claims, forge


def authenticator(**options: Any) -> Authenticator:
    settings = GatewaySettings(jwt_key=KEY.decode(), **options)
    return Authenticator(key_source(settings), Revoked(), settings)


async def test_a_good_token_gives_a_principal() -> None:
    """Subject, customer and scopes are those of the token."""
    header = bearer("acme", scopes=("vms:read",), subject="ann")["Authorization"]
    who = await authenticator().principal(header)
    assert (who.subject, who.customer_id, who.scopes) == ("ann", "acme", frozenset({"vms:read"}))
    who.require(Scope.VMS_READ)
    with pytest.raises(RefusedError) as caught:
        who.require(Scope.VMS_WRITE)
    assert caught.value.code is ErrorCode.FORBIDDEN
    assert 'scope="vms:write"' in caught.value.headers["WWW-Authenticate"]


@pytest.mark.parametrize("what", sorted(bad_tokens()))
async def test_a_bad_token_is_refused_without_a_word_why(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every kind of bad token gives the same refusal, and no part of it is logged."""
    caplog.set_level(logging.DEBUG)
    token = bad_tokens()[what]
    with pytest.raises(RefusedError) as caught:
        await authenticator().principal(f"Bearer {token}")
    assert caught.value.code is ErrorCode.UNAUTHENTICATED
    assert caught.value.message == "A valid bearer token is needed."
    assert 'error="invalid_token"' in caught.value.headers["WWW-Authenticate"]
    assert len(token) < 10 or token not in caplog.text
    assert KEY.decode() not in caplog.text


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "bearer\tx"])
async def test_a_missing_token_is_challenged(header: str | None) -> None:
    """Without a bearer token the answer says that one is needed."""
    with pytest.raises(RefusedError) as caught:
        await authenticator().principal(header)
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")


@given(st.text(max_size=200))
async def test_no_text_in_the_header_raises_anything_else(text: str) -> None:
    """Garbage is refused like any bad token."""
    with pytest.raises(RefusedError):
        await authenticator().principal(f"Bearer {text}")


async def test_a_kid_is_accepted_if_it_is_the_configured_one() -> None:
    """A token may name the key."""
    token = forge({"alg": "HS256", "kid": "k1"}, claims())
    who = await authenticator(jwt_key_id="k1").principal(f"Bearer {token}")
    assert who.customer_id == "acme"
    with pytest.raises(RefusedError):
        await authenticator().principal(f"Bearer {token}")


async def test_the_customer_claim_can_be_another_one() -> None:
    """An identity provider may call it as it likes."""
    token = forge({"alg": "HS256"}, claims(customer=None, tenant="globex"))
    who = await authenticator(customer_claim="tenant").principal(f"Bearer {token}")
    assert who.customer_id == "globex"


def test_a_short_key_is_refused_and_not_shown() -> None:
    """RFC 7518 asks for 32 bytes; the error names the variable, not the key."""
    settings = GatewaySettings(jwt_key="short-secret")
    with pytest.raises(SettingsError, match="DECISEC_GATEWAY_JWT_KEY") as caught:
        key_source(settings)
    assert "short-secret" not in str(caught.value)
    assert "short-secret" not in repr(settings)
    with pytest.raises(ValueError, match="32 bytes"):
        StaticHmacKey(b"x" * 31)


def test_exactly_one_source_of_the_key_is_needed(tmp_path: Path) -> None:
    """Neither and both are mistakes; a file works, one that is not there is named."""
    with pytest.raises(SettingsError, match="exactly one"):
        key_source(GatewaySettings())
    with pytest.raises(SettingsError, match="exactly one"):
        key_source(GatewaySettings(jwt_key="k" * 40, jwt_key_file="x"))
    with pytest.raises(SettingsError, match="missing"):
        key_source(GatewaySettings(jwt_key_file=str(tmp_path / "missing.key")))
    file = tmp_path / "dev.key"
    file.write_bytes(KEY + b"\n")
    assert isinstance(key_source(GatewaySettings(jwt_key_file=str(file))), StaticHmacKey)
