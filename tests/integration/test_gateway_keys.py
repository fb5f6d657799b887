"""An issuer's keys over real HTTP, from files, and through a whole gateway."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import KEYS_PART
from gateway.issuer_keys import ASK_BURST, IssuerKeys
from gateway.jwks import MAX_DOCUMENT_BYTES
from gateway.key_documents import key_document
from gateway.key_sources import key_source
from gateway.settings import GatewaySettings
from runtime.errors import SettingsError, TransientError
from runtime.health import Health
from schemas.ids import new_id
from tests.support.certificates import loopback_tls
from tests.support.gateway import running_gateway, until
from tests.support.issuer import ALGORITHMS, IssuerServer, SigningKey, document, issuer
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.ports import free_port
from tests.support.tokens import bearer

RSA, EC, ED = (SigningKey(algorithm, algorithm.lower()) for algorithm in ALGORITHMS)


async def read(where: str, *, timeout_s: float = 10.0, ca_file: str = "") -> bytes:
    """One reading."""
    found = key_document(where, timeout_s=timeout_s, ca_file=ca_file)
    async with found.opened():
        return await found.read()


async def test_a_document_is_read_over_http_and_https(tmp_path: Path) -> None:
    """HTTPS only by a certificate that is trusted."""
    async with issuer(ED) as server:
        assert await read(server.url) == document(ED)
    tls, trusted = loopback_tls(tmp_path)
    async with issuer(ED, tls=tls) as server:
        url = server.url.replace("http:", "https:")
        assert await read(url, ca_file=str(trusted)) == document(ED)
        with pytest.raises(TransientError, match="ConnectError"):
            await read(url)
        with pytest.raises(TransientError):
            await read(url.replace("127.0.0.1", "localhost"), ca_file=str(trusted))
    with pytest.raises(SettingsError, match="CA_FILE"):
        await read("https://127.0.0.1:1/", ca_file=str(tmp_path / "key.json"))
    (tmp_path / "key.json").write_text("{}")
    with pytest.raises(SettingsError, match="CA_FILE"):
        await read("https://127.0.0.1:1/", ca_file=str(tmp_path / "key.json"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "503 Service Unavailable"}, "503"),
        ({"status": "404 Not Found"}, "404"),
        ({"status": "302 Found", "headers": {"Location": "/keys"}}, "302"),
        ({"status": "204 No Content"}, "204"),
        ({"headers": {"Content-Encoding": "gzip"}, "body": gzip.compress(bytes(10_000_000))},
         "packed"),
        ({"headers": {"Content-Encoding": "gzip, br"}}, "packed"),
        ({"status": "nonsense"}, "RemoteProtocolError"),
        ({"headers": {"X": "y" * 200_000}}, "RemoteProtocolError"),
        ({"drip": True}, "no answer within"),
    ],
)  # fmt: skip
async def test_an_issuer_that_misbehaves_is_as_one_that_is_away(
    changes: dict[str, Any], words: str
) -> None:
    """No redirect is followed, nothing is unpacked, no one waits for long."""
    async with issuer(ED) as server:
        for name, value in changes.items():
            setattr(server, name, value)
        with pytest.raises(TransientError, match=words):
            await read(server.url, timeout_s=1.0 if server.drip else 10.0)


async def test_a_silent_issuer_and_none_at_all_are_away() -> None:
    """A connection without an answer, and no connection."""
    async with issuer(ED) as server:
        server.gate.clear()
        with pytest.raises(TransientError, match="no answer within"):
            await read(server.url, timeout_s=0.3)
    with pytest.raises(TransientError, match="ConnectError"):
        await read(f"http://127.0.0.1:{free_port()}/keys")


async def test_a_huge_document_is_not_read_to_its_end() -> None:
    """One byte more than may be is enough to know."""
    async with issuer() as server:
        server.body = b" " * 50_000_000
        assert len(await read(server.url)) == MAX_DOCUMENT_BYTES + 1


async def test_a_file_must_be_one_that_only_some_can_write(tmp_path: Path) -> None:
    """No pipe, which nobody may ever fill, no directory, nothing that everybody can change."""
    file = tmp_path / "keys.json"
    with pytest.raises(TransientError, match="No such file"):
        await read(str(file))
    file.write_bytes(document(ED))
    file.chmod(0o644)
    assert await read(str(file)) == document(ED)
    (tmp_path / "link").symlink_to(file)
    assert await read(str(tmp_path / "link")) == document(ED)
    file.chmod(0o666)
    with pytest.raises(TransientError, match="everybody"):
        await read(str(file))
    file.chmod(0o600)
    file.write_bytes(b" " * 3_000_000)
    assert len(await read(str(file))) == MAX_DOCUMENT_BYTES + 1
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(TransientError):
            await read(str(other))


@pytest.mark.parametrize(
    "where",
    [
        "http://issuer.example/keys",
        "http://10.0.0.1/keys",
        "http://127.0.0.1.example/keys",
        "http://localhost.example/keys",
        "http://[::2]/keys",
        "https://user:secret@issuer.example/keys",
        "https:///keys",
        "https://issuer.example:port/keys",
        "file:///etc/keys",
        "ftp://issuer.example/keys",
        "://x",
    ],
)
def test_an_address_that_cannot_be_trusted_is_refused_at_the_start(where: str) -> None:
    """The variable is named, a password in it is not shown."""
    with pytest.raises(SettingsError, match="DECISEC_GATEWAY_JWKS") as caught:
        key_source(GatewaySettings(jwks=where, jwt_issuer="i"))
    assert "secret" not in str(caught.value)


def test_addresses_on_this_machine_and_by_tls_are_taken() -> None:
    """With an issuer that is named, and one kind of key only."""
    for where in ("http://127.0.0.1:1/k", "http://[::1]/k", "http://localhost/k", "HTTPS://i/k",
                  "https://i.example:8443/k?v=2"):  # fmt: skip
        assert isinstance(key_source(GatewaySettings(jwks=where, jwt_issuer="i")), IssuerKeys)
    with pytest.raises(SettingsError, match="JWT_ISSUER"):
        key_source(GatewaySettings(jwks="https://i/k"))
    with pytest.raises(SettingsError, match="exactly one"):
        key_source(GatewaySettings(jwks="keys.json", jwt_key="k" * 40))
    with pytest.raises(SettingsError, match="MAX_STALE"):
        key_source(GatewaySettings(jwks="keys.json", jwks_max_stale_s=300))


@asynccontextmanager
async def served(
    server: NatsServer, where: str, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Health]]:
    """A gateway with the keys of an issuer, and a client of it."""
    options = {"jwks_refresh_s": 1.0, "jwks_max_stale_s": 600.0, "jwks_timeout_s": 2.0, **options}
    async with (
        running_gateway(server, jwt_key="", jwks=where, jwt_issuer="decisec-test", **options) as (
            _,
            health,
            url,
        ),
        httpx.AsyncClient(base_url=url, timeout=30) as api,
    ):
        yield api, health


async def asked(api: httpx.AsyncClient, key: SigningKey, **changes: Any) -> int:
    """The status of the answer to a token."""
    token = key.token(**{"iss": "decisec-test", **changes})
    response = await api.get("/v1/whoami", headers={"Authorization": f"Bearer {token}"})
    if response.status_code != 200:
        kind = "unauthenticated" if response.status_code == 401 else "unavailable"
        assert response.json()["code"] == kind
    return response.status_code


async def test_keys_are_rotated_under_a_running_gateway(tmp_path: Path) -> None:
    """New ones at once, old ones until they are read to be gone; one reading at a time."""
    old, new = SigningKey("ES256", "2026"), SigningKey("ES256", "2027", number=1)
    async with (
        bus_with_streams(tmp_path) as (nats, _),
        issuer(old) as web,
        served(nats, web.url, jwks_refresh_s=30.0) as (api, health),
    ):
        assert health.problems == {}
        assert await asked(api, old) == 200
        assert await asked(api, new) == 401
        web.serve([old, new])
        assert await asked(api, new) == 200
        assert await asked(api, old) == 200
        assert (await api.get("/v1/whoami", headers=bearer())).status_code == 401
        before = web.asked
        answers = await asyncio.gather(
            *(asked(api, SigningKey("ES256", f"garbage-{n}")) for n in range(40))
        )
        assert set(answers) == {401}
        assert web.asked - before <= ASK_BURST
        assert web.most == 1
    assert web.most == 1


async def test_a_key_that_the_issuer_withdraws_ends_its_tokens(tmp_path: Path) -> None:
    """After the next reading, without a restart, whatever is remembered of them."""
    old, new = SigningKey("RS256", "a"), SigningKey("EdDSA", "b")
    file = tmp_path / "keys.json"
    file.write_bytes(document(old))
    async with (
        bus_with_streams(tmp_path / "nats") as (nats, _),
        served(nats, str(file)) as (api, _),
    ):
        assert await asked(api, old) == 200
        fresh = tmp_path / "fresh.json"
        fresh.write_bytes(document(new))
        fresh.replace(file)

        async def gone() -> bool:
            return await asked(api, old) == 401

        await until(gone)
        assert await asked(api, new) == 200


async def misbehave(web: IssuerServer, how: str) -> None:
    """Let the issuer be of no use."""
    match how:
        case "outage":
            web.status = "503 Service Unavailable"
        case "slow":
            web.drip = True
        case "garbage":
            web.body = b"<html>welcome</html>"
        case "huge":
            web.body = json.dumps({"keys": [], "x": "y" * 10_000_000}).encode()


@pytest.mark.parametrize("how", ["outage", "slow", "garbage", "huge"])
async def test_keys_outlive_their_issuer_for_a_while_and_no_longer(
    tmp_path: Path, how: str
) -> None:
    """First as before; then 503 and not ready; then, once it is back, as before."""
    async with bus_with_streams(tmp_path) as (nats, _), issuer(ED) as web:
        options = {"jwks_refresh_s": 1.0, "jwks_max_stale_s": 4.0, "jwks_timeout_s": 0.5}
        async with served(nats, web.url, **options) as (api, health):
            assert await asked(api, ED) == 200
            good = web.body
            await misbehave(web, how)
            before = web.asked
            await until(lambda: web.asked >= before + 2)
            assert await asked(api, ED) == 200

            async def away() -> bool:
                return await asked(api, ED) == 503

            await until(away, 30)
            await until(lambda: KEYS_PART in health.problems, 30)
            web.status, web.drip, web.body = "200 OK", False, good

            async def back() -> bool:
                return await asked(api, ED) == 200 and not health.problems

            await until(back, 30)


async def test_a_gateway_ends_when_its_certificates_are_none(tmp_path: Path) -> None:
    """No later reading could succeed: the operator must change a setting."""
    (tmp_path / "ca.pem").write_text("no certificate")
    options = {"jwks_ca_file": str(tmp_path / "ca.pem")}
    async with bus_with_streams(tmp_path / "nats") as (nats, _):
        with pytest.raises(BaseExceptionGroup) as caught:
            async with served(nats, "https://127.0.0.1:9/keys", **options):
                raise AssertionError("it serves")
        assert caught.group_contains(SettingsError, match="CA_FILE")


async def test_a_gateway_is_not_ready_before_it_has_read_the_keys(tmp_path: Path) -> None:
    """It says why, tries again, and opens its API once it has them."""
    async with bus_with_streams(tmp_path) as (nats, _), issuer() as web:
        web.body = b"not yet"

        async def later() -> None:
            await until(lambda: web.asked >= 2, 30)
            web.serve([ED])

        async with asyncio.TaskGroup() as group:
            group.create_task(later(), name="issuer-comes-up")
            async with served(nats, web.url) as (api, health):
                assert web.asked >= 3
                assert health.problems == {}
                assert await asked(api, ED) == 200


async def test_an_operator_without_customer_opens_no_customers_door(tmp_path: Path) -> None:
    """Every route there is, found in the API's own description, but for who they are."""
    async with (
        bus_with_streams(tmp_path) as (nats, _),
        issuer(ED) as web,
        served(nats, web.url) as (api, _),
    ):
        scopes = "admin vms:read vms:write usage:read"
        token = ED.token(iss="decisec-test", customer=None, scope=scopes)
        api.headers["Authorization"] = f"Bearer {token}"
        who = (await api.get("/v1/whoami")).json()
        assert (who["customer_id"], "admin" in who["scopes"]) == ("", True)
        paths = (await api.get("/openapi.json")).json()["paths"]
        asked: dict[str, int] = {}
        for path, methods in paths.items():
            url = re.sub(r"\{[^}]*\}", str(new_id()), path)
            for method in methods:
                body = {"image": "tiny"} if path == "/v1/vms" else {}
                headers = {} if method == "get" else {"Idempotency-Key": str(new_id())}
                sent = None if method == "get" else body
                response = await api.request(method, url, json=sent, headers=headers)
                asked[f"{method} {path}"] = response.status_code
        assert asked.pop("get /v1/whoami") == 200
        for_operators = [route for route in asked if " /v1/admin/" in route]
        others = {route: status for route, status in asked.items() if route not in for_operators}
        # 400 and 415: a body or a question that this route does not take is refused first.
        assert set(others.values()) <= {400, 403, 415}, others
        assert list(others.values()).count(403) >= 10, others
