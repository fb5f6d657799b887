"""Tokens that operators revoke, while gateways run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from decisec.cli.exits import Exit
from decisec.devkit.tokens import mint
from decisec.tokens import TokenRevocations
from gateway.app import HEALTH_PART, gateway
from gateway.principal import Principal
from gateway.revocations import Revocations
from gateway.settings import GatewaySettings
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from runtime.health import Health
from runtime.streams import apply, declared
from schemas.codec import encode
from schemas.errors import MalformedMessageError
from schemas.tokens import (
    MAX_TOKEN_LIFETIME_S,
    REVOCATION_KEPT_S,
    REVOKED_TOKENS,
    Revocation,
    RevokedBy,
    customer_key,
    decode_revocation,
    jti_key,
)
from tests.support.gateway import running_gateway, until
from tests.support.nats import NatsServer, bus_with_streams, nats_server
from tests.support.operator import Operator
from tests.support.replays import audit_entries
from tests.support.shell import Shell
from tests.support.tokens import KEY, bearer, claims, forge


@pytest.fixture
async def operator(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Operator, NatsServer]]:
    """An operator beside a bus."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    async with bus_with_streams(tmp_path / "nats") as (server, bus):
        yield Operator(Shell(folder, capfd, monkeypatch), server, bus, folder), server


@asynccontextmanager
async def two_gateways(server: NatsServer) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of two gateways on one bus."""
    async with (
        running_gateway(server) as (_, _, one),
        running_gateway(server) as (_, _, two),
        httpx.AsyncClient(base_url=one, timeout=30) as first,
        httpx.AsyncClient(base_url=two, timeout=30) as second,
    ):
        yield [first, second]


async def statuses(apis: list[httpx.AsyncClient], headers: dict[str, str]) -> list[int]:
    """What each gateway answers to a token."""
    return [(await api.get("/v1/whoami", headers=headers)).status_code for api in apis]


def token_of(**changes: Any) -> dict[str, str]:
    """Headers with a token of certain claims."""
    return {"Authorization": f"Bearer {forge({'alg': 'HS256'}, claims(**changes))}"}


async def test_a_revocation_reaches_all_gateways(operator: tuple[Operator, NatsServer]) -> None:
    """By token, subject or customer; only what was issued before, and nobody else's."""
    run, server = operator
    earlier = int(time.time()) - 60
    async with two_gateways(server) as apis:

        async def struck(headers: dict[str, str]) -> bool:
            return await statuses(apis, headers) == [401, 401]

        for arguments, bad, good in (
            (["--jti", "t 1/ü"], token_of(jti="t 1/ü"), token_of(jti="t 2")),
            (["--subject", "ann"], token_of(sub="ann", iat=earlier), token_of(sub="bob")),
            (["--customer", "globex"], token_of(customer="globex", iat=earlier), token_of()),
        ):
            assert await statuses(apis, bad) == [200, 200]
            done = await run("token", "revoke", *arguments, "--reason", "stolen [laptop]")
            assert done.code == 0, done
            assert "revoked since" in done.out
            await until(lambda bad=bad: struck(bad))  # type: ignore[misc]
            assert await statuses(apis, good) == [200, 200]
        fresh = int(time.time()) + 1
        assert await statuses(apis, token_of(customer="globex", iat=fresh)) == [200, 200]
        assert await statuses(apis, token_of(sub="ann", iat=fresh)) == [200, 200]
    async with two_gateways(server) as apis:
        assert await statuses(apis, token_of(jti="t 1/ü")) == [401, 401]
    entries = [e for e in await audit_entries(run.bus) if e.action == "token-revoke"]
    assert [e.target for e in entries[::2]] == ["jti t 1/ü", "subject ann", "customer globex"]
    assert {e.reason for e in entries} == {"stolen [laptop]"}
    assert entries[-1].outcome == "succeeded"
    listed = await run("token", "ls")
    assert "stolen [laptop]" in listed.out
    found = (await run("token", "ls", "--json")).json["revocations"]
    assert [one["by"] for one in found] == ["jti", "subject", "customer"]


async def test_a_revocation_can_be_repeated_and_is_never_made_weaker(
    operator: tuple[Operator, NatsServer],
) -> None:
    """A later one strikes more, an earlier one changes nothing."""
    run, _ = operator
    why = ("--reason", "x", "--json")
    for arguments, changed in (
        (["--jti", "a"], True),
        (["--jti", "a"], False),
        (["--customer", "acme", "--issued-before", "-2h"], True),
        (["--customer", "acme", "--issued-before", "-3h"], False),
        (["--customer", "acme", "--issued-before", "-1h"], True),
        (["--customer", "acme"], True),
        (["--customer", "acme", "--issued-before", "2026-01-01T00:00:00Z"], False),
    ):
        assert (await run("token", "revoke", *arguments, *why)).json["changed"] is changed
    assert "stands already" in (await run("token", "revoke", "--jti", "a", "--reason", "x")).out
    assert len((await run("token", "ls", "--json")).json["revocations"]) == 2


async def test_a_token_is_revoked_by_showing_it(operator: tuple[Operator, NatsServer]) -> None:
    """Its id is read from the file; the token itself goes nowhere else."""
    run, server = operator
    leaked = mint(KEY, "acme")
    (run.folder / "leaked").write_text(f"{leaked}\n")
    async with two_gateways(server) as apis:
        headers = {"Authorization": f"Bearer {leaked}"}
        assert await statuses(apis, headers) == [200, 200]
        done = await run("token", "revoke", "--token-file", "leaked", "--reason", "leaked")
        assert done.code == 0, done
        assert leaked.split(".")[2] not in done.out + done.err

        async def struck() -> bool:
            return await statuses(apis, headers) == [401, 401]

        await until(struck)
    (run.folder / "nameless").write_text(forge({"alg": "HS256"}, claims()))
    for file, word in (("nameless", "--subject"), ("missing", "No such file"), (".", "directory")):
        done = await run("token", "revoke", "--token-file", file, "--reason", "x", "--json")
        assert done.code == Exit.USAGE
        assert word in done.problem["detail"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--jti"),
        (["--jti", "a", "--subject", "b"], "one of"),
        (["--customer", "A.b"], "--customer"),
        (["--jti", "a", "--issued-before", "-1h"], "--issued-before"),
        (["--subject", "a", "--issued-before", "2100-01-01T00:00:00Z"], "to come"),
        (["--subject", "a", "--issued-before", "17"], "time"),
        (["--subject", "a", "--issued-before", "soon"], "soon"),
        (["--subject", "a" * 256], "255"),
        (["--subject", "\udcff"], "UTF-8"),
    ],
)
async def test_what_cannot_be_meant_is_not_done(
    operator: tuple[Operator, NatsServer], arguments: list[str], word: str
) -> None:
    """The option is named; a reason is needed."""
    run, _ = operator
    done = await run("token", "revoke", *arguments, "--reason", "x", "--json")
    assert done.code == Exit.USAGE
    assert word in done.problem["detail"]
    assert (await run("token", "revoke", "--jti", "a")).code == Exit.USAGE
    assert (await run("token", "ls", "--json")).json == {"revocations": []}


async def test_a_gateway_that_has_never_heard_what_is_revoked_is_not_ready(tmp_path: Path) -> None:
    """It takes no token; it opens once the bucket is there."""
    async with nats_server(tmp_path) as server, Bus.connect(server.settings(), name="t") as bus:
        whole = declared()
        rest = tuple(b for b in whole.bucket if b.name != REVOKED_TOKENS)
        await apply(bus, msgspec.structs.replace(whole, bucket=rest))
        settings = GatewaySettings(nats_url=server.url, api_port=0, jwt_key=KEY.decode())
        health, opened = Health(), asyncio.Event()

        async def serve() -> None:
            async with (
                Bus.connect(settings, name="gateway", health=health) as own,
                gateway(settings, own, health, asyncio.Event()) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api,
            ):
                opened.set()
                assert (await api.get("/v1/whoami", headers=bearer())).status_code == 200

        async with asyncio.TaskGroup() as group:
            group.create_task(serve(), name="gateway")
            await until(lambda: HEALTH_PART in health.problems)
            # The other buckets take a moment; this one is not there at all.
            await asyncio.wait({waiting := asyncio.ensure_future(opened.wait())}, timeout=1.0)
            assert not opened.is_set()
            waiting.cancel()
            await apply(bus, whole)
            async with asyncio.timeout(30):
                await opened.wait()


async def test_without_a_word_for_too_long_no_token_is_taken(tmp_path: Path) -> None:
    """Whether one was revoked meanwhile, nobody can tell; with the bus it comes back by itself."""
    who = Principal("a", "acme", frozenset(), revocation_keys=(customer_key("acme"), jti_key("x")))
    async with bus_with_streams(tmp_path) as (server, bus):
        late_s = 0.0
        revocations = Revocations(bus, max_stale_s=60.0, clock=lambda: time.monotonic() + late_s)
        with pytest.raises(TransientError):
            revocations.covers(who)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(revocations.run(), name="revocations")
            await revocations.synced()
            assert revocations.covers(who) is False
            await server.kill()
            assert revocations.covers(who) is False
            late_s = 70.0
            with pytest.raises(TransientError):
                revocations.covers(who)
            late_s = 0.0
            await server.start()
            bucket = Bucket(bus, REVOKED_TOKENS, decode_revocation)
            struck = revocation(RevokedBy.CUSTOMER, "acme")

            async def written() -> bool:
                try:
                    await bucket.put(struck.key, struck)
                except TransientError:
                    return False
                return True

            await until(written, 30)
            await until(lambda: revocations.covers(who), 30)
            following.cancel()


async def test_a_full_bucket_takes_no_more_and_drops_nothing(
    operator: tuple[Operator, NatsServer],
) -> None:
    """The operator is told; what was revoked stays so."""
    run, _ = operator
    whole = declared()
    small = tuple(
        msgspec.structs.replace(b, max_bytes=4096) if b.name == REVOKED_TOKENS else b
        for b in whole.bucket
    )
    await apply(run.bus, msgspec.structs.replace(whole, bucket=small))
    revocations = TokenRevocations(run.bus)
    made = 0

    async def fill() -> None:
        nonlocal made
        for made in range(100):
            await revocations.revoke(
                RevokedBy.JTI, f"t{made}", issued_before=None, reason="r", requested_by="op"
            )

    with pytest.raises(TransientError, match=r"revoked_tokens"):
        await fill()
    assert 1 < made < 20
    done = await run("token", "revoke", "--jti", "one-more", "--reason", "r", "--json")
    assert (done.code, done.problem["code"]) == (Exit.UNREACHABLE, "unavailable")
    assert [one.value for one in await revocations.all()] == [f"t{n}" for n in range(made)]


def revocation(by: RevokedBy, value: str) -> Revocation:
    """One of now."""
    return Revocation(
        by=by,
        value=value,
        issued_before=None if by is RevokedBy.JTI else utc_now(),
        reason="r",
        requested_by="op",
        revoked_at=utc_now(),
    )


async def test_a_revocation_that_is_none_does_not_hide_the_others(tmp_path: Path) -> None:
    """It is told in the log; what follows it is taken."""
    async with bus_with_streams(tmp_path) as (_, bus):
        store = await bus.js.key_value(REVOKED_TOKENS)
        await store.put("jti.broken", b"{")
        good = revocation(RevokedBy.JTI, "x")
        await Bucket(bus, REVOKED_TOKENS, decode_revocation).put(good.key, good)
        revocations = Revocations(bus, max_stale_s=60.0)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(revocations.run(), name="revocations")
            await revocations.synced()
            who = Principal("a", "acme", frozenset(), revocation_keys=(jti_key("x"),))
            assert revocations.covers(who) is True
            following.cancel()


def test_revocations_outlive_every_token() -> None:
    """The bucket keeps them for longer than a token may live, and refuses what it cannot hold."""
    (bucket,) = (b for b in declared().bucket if b.name == REVOKED_TOKENS)
    assert bucket.ttl_s == REVOCATION_KEPT_S > MAX_TOKEN_LIFETIME_S + 300
    assert bucket.max_bytes > 0
    with pytest.raises(MalformedMessageError):
        decode_revocation(b'{"by":"jti"}')
    one = revocation(RevokedBy.SUBJECT, "\ud800")
    assert one.key.startswith("subject.")
    assert decode_revocation(encode(revocation(RevokedBy.JTI, "t"))).covers(0)
