"""Keys of an issuer that come, go and fail, and the tokens that were signed with them."""

from __future__ import annotations

import asyncio

import pytest

from gateway.issuer_keys import ASK_BURST, ASK_EVERY_S
from runtime.errors import TransientError
from tests.support.issuer import (
    SigningKey,
    document,
)
from tests.support.token_bench import EC, ED, RSA, bench, refused


async def test_a_key_that_is_gone_ends_its_tokens_and_a_new_one_is_taken_at_once() -> None:
    """Also those that were verified before; nothing is started anew."""
    old, new = SigningKey("EdDSA", "old"), SigningKey("EdDSA", "new", number=1)
    async with bench(old) as (made, authenticator):
        await authenticator.principal(f"Bearer {old.token()}")
        made.document.body = document(old, new)
        await authenticator.principal(f"Bearer {new.token()}")
        await authenticator.principal(f"Bearer {old.token()}")
        made.document.body = document(new)
        await refused(authenticator, ED.token())  # an unknown kid has it read
        await refused(authenticator, old.token())
        await authenticator.principal(f"Bearer {new.token()}")


async def test_another_key_under_the_same_kid_ends_the_old_ones_tokens() -> None:
    """A name is no proof."""
    old, new = SigningKey("EdDSA", "k"), SigningKey("EdDSA", "k", number=1)
    async with bench(old) as (made, authenticator):
        token = old.token()
        await authenticator.principal(f"Bearer {token}")
        made.document.body = document(new)
        await refused(authenticator, SigningKey("EdDSA", "unknown").token())
        await refused(authenticator, token)
        await authenticator.principal(f"Bearer {new.token()}")


async def test_unknown_kids_cannot_make_the_gateway_ask_more_than_it_should() -> None:
    """A few at once, then one in ten seconds, whatever the kids are."""
    async with bench() as (made, authenticator):
        before = made.document.reads

        async def flood(number: int) -> None:
            await refused(authenticator, SigningKey("EdDSA", f"g{number}").token())

        for number in range(50):
            await flood(number)
        assert made.document.reads == before + ASK_BURST
        for rounds in range(1, 4):
            made.monotonic_s += ASK_EVERY_S
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(flood(number), name=f"flood-{number}")
            assert made.document.reads == before + ASK_BURST + rounds


async def test_keys_serve_while_the_issuer_is_away_up_to_a_bound() -> None:
    """Then nothing is taken, and the answer is that of a service that is away: try again."""
    async with bench() as (made, authenticator):
        token = f"Bearer {ED.token()}"
        await authenticator.principal(token)
        made.document.body = TransientError("away")
        made.monotonic_s += 3599
        with pytest.raises(TransientError):  # it may be a new key: nobody can tell
            await authenticator.principal(f"Bearer {SigningKey('EdDSA', 'new').token()}")
        await authenticator.principal(token)
        await authenticator.principal(f"Bearer {RSA.token()}")
        made.monotonic_s += 2
        for header in (token, f"Bearer {EC.token()}", f"Bearer {SigningKey('EdDSA', 'x').token()}"):
            with pytest.raises(TransientError):
                await authenticator.principal(header)


async def test_a_malformed_document_keeps_the_old_keys_and_one_without_keys_does_not() -> None:
    """What the issuer has withdrawn is not used on; with no key at all nothing is taken."""
    async with bench() as (made, authenticator):
        token = f"Bearer {ED.token()}"
        for body in (b"<html>", b'{"keys": {}}'):
            made.document.body = body
            with pytest.raises(TransientError):
                await authenticator.principal(f"Bearer {SigningKey('EdDSA', 'new').token()}")
            await authenticator.principal(token)
        made.document.body = document(RSA.jwk(use="enc"))
        with pytest.raises(TransientError):
            await authenticator.principal(f"Bearer {SigningKey('EdDSA', 'new').token()}")
        with pytest.raises(TransientError):
            await authenticator.principal(token)
        assert "no key" in made.told[-1]
