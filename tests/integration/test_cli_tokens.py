"""`decisec token` and `decisec token keygen`, with gateways that take what they make, or do not."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from decisec.cli.exits import Exit
from decisec.dev.state import StateDir
from tests.support.gateway import running_gateway
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.operator import Operator
from tests.support.shell import Shell
from tests.support.tokens import KEY


@pytest.fixture
async def here(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Operator, NatsServer]]:
    """A directory where commands are run, and a bus for gateways."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    async with bus_with_streams(tmp_path / "nats") as (server, bus):
        yield Operator(Shell(folder, capfd, monkeypatch), server, bus, folder), server


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
async def test_a_gateway_takes_tokens_of_a_key_that_was_made_here(
    here: tuple[Operator, NatsServer], algorithm: str
) -> None:
    """The private part is its owner's only; the set holds no part of it."""
    run, server = here
    made = (await run("token", "keygen", "--alg", algorithm, "--json")).json
    secret, public = run.folder / made["key"], run.folder / made["jwks"]
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    private = json.loads(secret.read_bytes())
    assert private["d"] not in public.read_text()
    assert [key["kid"] for key in json.loads(public.read_bytes())["keys"]] == [made["kid"]]
    async with running_gateway(server, jwt_key="", jwks=str(public)) as (_, _, url):
        found = (await run("token", "--key", made["key"], "--api-url", url, "--json")).json
        assert (found["accepted"], found["customer"], found["expires_in_s"]) == (
            True,
            "demo",
            604_800,
        )
        plain = await run(
            *("token", "--key", made["key"], "--api-url", url, "--scope", "admin"),
            *("--expires", "15m"),
        )
        assert (plain.code, plain.err) == (0, "")
        assert plain.out.count(".") == 2
        for options in (["--issuer", "other"], ["--audience", "other"], ["--expires", "8d"]):
            refused = await run("token", "--key", made["key"], "--api-url", url, *options)
            assert refused.code == Exit.DENIED
            assert "does not take this token" in refused.err
            assert refused.out.count(".") == 2

        # A second key beside the first: both serve.
        second = (await run("token", "keygen", "--key", "second.json", "--json")).json
        assert len(json.loads(public.read_bytes())["keys"]) == 2
        for key in (made["key"], second["key"]):
            assert (await run("token", "--key", key, "--api-url", url, "--json")).json["accepted"]


async def test_a_shared_secret_signs_for_a_development_gateway_only(
    here: tuple[Operator, NatsServer],
) -> None:
    """What the local stack's key is; a gateway with a key set takes no such token."""
    run, server = here
    (run.folder / "dev.key").write_bytes(KEY)
    await run("token", "keygen")
    async with (
        running_gateway(server) as (_, _, development),
        running_gateway(server, jwt_key="", jwks=str(run.folder / "jwks.json")) as (_, _, other),
    ):
        ask = ("token", "--key", "dev.key", "--json", "--api-url")
        assert (await run(*ask, development)).json["accepted"] is True
        refused = await run(*ask, other)
        assert (refused.code, json.loads(refused.out)["accepted"]) == (Exit.DENIED, False)
        with_key = await run("token", "--key", "token-key.json", "--api-url", development)
        assert with_key.code == Exit.DENIED


async def test_a_token_is_printed_although_nobody_can_be_asked(
    here: tuple[Operator, NatsServer],
) -> None:
    """But it is said; and that none will ever take it, where that is sure."""
    run, _ = here
    StateDir(run.folder / ".decisec").root.mkdir()
    (run.folder / ".decisec" / "dev.key").write_bytes(KEY)
    done = await run("token", "--customer", "globex", "--scope", "vms:read usage:read")
    assert (done.code, done.out.count(".")) == (0, 2)
    assert "no gateway runs" in done.err
    away = await run("token", "--api-url", "http://127.0.0.1:9", "--json")
    assert away.json["accepted"] is None
    assert "cannot be asked" in away.err
    never = await run("token", "--expires", "31d")
    assert never.code == Exit.DENIED
    assert "30 days" in never.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--scope", "root"], "--scope"),
        (["--customer", "a.b"], "--customer"),
        (["--expires", "0s"], "--expires"),
        (["--expires", "soon"], "--expires"),
        (["--issuer", "i"], "--key"),
        (["--key", "missing"], "No such file"),
        (["--key", "short"], "32 bytes"),
        (["--key", "jwks.json"], "--key"),
        (["--key", "public"], "private"),
        (["--key", "broken"], "whole"),
        (["--key", "pem"], "keygen"),
    ],
)
async def test_what_cannot_be_signed_is_refused(
    here: tuple[Operator, NatsServer], arguments: list[str], word: str
) -> None:
    """The option is named, and nothing of a key is shown."""
    run, _ = here
    assert (await run("token", "keygen")).code == 0
    private = json.loads((run.folder / "token-key.json").read_bytes())
    public = {name: value for name, value in private.items() if name != "d"}
    (run.folder / "short").write_text("secret")
    (run.folder / "public").write_text(json.dumps(public))
    (run.folder / "broken").write_text(json.dumps({**private, "d": "c2VjcmV0"}))
    (run.folder / "pem").write_text("-----BEGIN PRIVATE KEY-----\n" + "A" * 64)
    key = [] if "--key" in arguments or "--issuer" in arguments else ["--key", "token-key.json"]
    done = await run("token", *key, *arguments, "--json")
    assert done.code == Exit.USAGE, done
    assert word in done.problem["detail"]
    assert "secret" not in done.err.replace("a secret of", "")
    assert private["d"] not in done.err


async def test_keys_are_never_overwritten(here: tuple[Operator, NatsServer]) -> None:
    """Nor is what is no key set added to."""
    run, _ = here
    (run.folder / "notes.json").write_text('["a"]')
    other = await run("token", "keygen", "--jwks", "notes.json", "--json")
    assert (other.code, other.problem["code"]) == (Exit.USAGE, "usage")
    assert (run.folder / "notes.json").read_text() == '["a"]'
    assert not (run.folder / "token-key.json").exists()
    assert (await run("token", "keygen")).code == 0
    before = (run.folder / "token-key.json").read_bytes()
    again = await run("token", "keygen", "--json")
    assert (again.code, again.problem["code"]) == (Exit.USAGE, "exists")
    assert (run.folder / "token-key.json").read_bytes() == before
