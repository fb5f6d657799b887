"""Credentials and TLS: issued and taken back while the server runs, and told plainly when wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from decisec.bus.accounts import SYSTEM
from decisec.bus.certificates import make_authority
from decisec.bus.roles import CORE
from decisec.cli.exits import Exit
from runtime.bus import HEALTH_PART, PERMISSIONS_PART, Bus
from runtime.errors import FatalError, SettingsError, TransientError
from runtime.health import Health
from runtime.publisher import Publisher
from runtime.settings import CommonSettings
from schemas.audit import OPERATOR
from schemas.ids import RESERVED_CUSTOMERS
from tests.support.nats import NatsServer, nats_server
from tests.support.secured_bus import SecuredBus, all_sent, secured_bus
from tests.support.shell import Done, Shell


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[SecuredBus]:
    async with secured_bus(tmp_path / "bus") as secured:
        yield secured


async def until_said(health: Health, part: str, words: str) -> None:
    """Return once a part is not ready for this reason."""
    async with asyncio.timeout(30):
        while words not in health.problems.get(part, ""):
            await asyncio.sleep(0.02)


async def test_revoked_credentials_are_thrown_out_and_nobody_else(bus: SecuredBus) -> None:
    """At once; health says why; they are not let in again. Others keep their connection."""
    bus.issue("agent", "h1")
    bus.issue("agent", "h2")
    assert bus.folder.reload()
    health = Health()
    settings = bus.settings("agent", "h1")
    async with (
        Bus.connect(settings, name="agent", health=health) as thrown,
        bus.bus("agent", "h2") as other,
        bus.bus("operator", "ops") as operator,
    ):
        await Publisher(thrown).publish("metrics.raw.h1", b"1", msg_id="1")
        (key,) = (o.public_key for o in bus.folder.registry.good if o.name == "h1")
        bus.folder.revoke([key])
        assert bus.folder.reload()
        # Before that it may be a connection that was lost.
        await until_said(health, HEALTH_PART, "refuses the credentials")
        assert not thrown.connected
        with pytest.raises(TransientError):
            await Publisher(thrown).publish("metrics.raw.h1", b"2", msg_id="2", limit_s=0.5)
        await Publisher(other).publish("metrics.raw.h2", b"1", msg_id="3")
        assert (other.epoch, operator.epoch) == (0, 0)
        with pytest.raises(FatalError, match="refuses the credentials"):
            async with Bus.connect(settings, name="agent"):
                pass
    log = [json.loads(line) for line in (bus.folder.root / "audit.log").read_text().splitlines()]
    assert log[-1]["event"] == "credentials.revoked"
    assert (log[-1]["role"], log[-1]["name"], log[-1]["public_key"]) == ("agent", "h1", key)


async def test_new_credentials_work_at_once_and_disturb_nobody(bus: SecuredBus) -> None:
    """Also those of a host that the server has not known, and a second set for the same one."""
    async with bus.bus("operator", "ops") as operator:
        for _ in range(2):
            issued, _ = bus.folder.issue("agent", "h9")
            assert bus.folder.reload()
            settings = msgspec.structs.replace(
                bus.settings("operator", "ops"), nats_credentials=str(issued.path)
            )
            async with Bus.connect(settings, name="agent") as agent:
                message_id = issued.credential.public_key
                await Publisher(agent).publish("metrics.raw.h9", b"x", msg_id=message_id)
        assert operator.epoch == 0
        assert (await operator.js.stream_info("METRICS_RAW")).state.messages == 2


async def test_what_is_not_permitted_is_said_at_once(bus: SecuredBus) -> None:
    """In the log, on health and in the error; nothing waits for its timeout."""
    health = Health()
    settings = bus.settings("collector", "c1")
    assert bus.folder.reload()
    async with Bus.connect(settings, name="collector", health=health) as collector:
        async with asyncio.timeout(5):
            with pytest.raises(TransientError, match="does not permit to publish on store"):
                await collector.request("store.ask.gaps", b"", timeout_s=60)
        assert "store.ask.gaps" in health.problems[PERMISSIONS_PART]
        await collector.client.subscribe("usage.query.*")
        await all_sent(collector.client)
        assert "usage.query.*" in health.problems[PERMISSIONS_PART]


async def test_nothing_is_sent_in_plain_text_where_tls_is_wanted(tmp_path: Path) -> None:
    """A server that does not encrypt, or somebody in between who says so, gets no word."""
    async with nats_server(tmp_path) as server:
        for settings in (
            CommonSettings(nats_url=server.url.replace("nats://", "tls://")),
            CommonSettings(nats_url=server.url, nats_ca=authority(tmp_path / "ca")),
        ):
            with pytest.raises(FatalError, match="does not encrypt"):
                async with Bus.connect(settings, name="test"):
                    pass


def authority(folder: Path) -> str:
    """Somebody else's CA."""
    folder.mkdir()
    make_authority(folder / "ca.pem", folder / "ca.key", "another")
    return str(folder / "ca.pem")


async def test_a_server_proves_who_it_is(bus: SecuredBus, tmp_path: Path) -> None:
    """By a certificate of the authority that was named, for the name it was called by."""
    good = bus.settings("operator", "ops")
    replace = msgspec.structs.replace
    for bad in (
        replace(good, nats_ca=authority(tmp_path / "other")),
        replace(good, nats_url=good.nats_url.replace("127.0.0.1", "localhost")),
    ):
        with pytest.raises(FatalError, match="certificate is not to be trusted"):
            async with Bus.connect(bad, name="test"):
                pass


async def test_a_server_may_want_certificates_of_clients(tmp_path: Path) -> None:
    """Who shows none is not let in, whatever his credentials."""
    bus = SecuredBus(tmp_path / "bus", client_certificates=True)
    without = bus.settings("operator", "ops")
    made, key = bus.folder.certificate("client", ())
    await bus.start()
    try:
        shown = msgspec.structs.replace(without, nats_certificate=str(made), nats_key=str(key))
        async with Bus.connect(shown, name="test") as connected:
            assert connected.connected
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(2, stop.set)
        with pytest.raises(FatalError):
            async with Bus.connect(without, name="test", stop=stop):
                pass
    finally:
        await bus.end()


async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """The setting, the file and what is wrong; never what it holds."""
    seed = "SUANWHUAIJCHK4OPG72LLKHGUZK7IJ6RQEYMMNBM4GVYXDE4M6MCOZQOHY"
    for text, why in (
        (None, "cannot be read"),
        ("nothing", "holds no user's seed"),
        (f"{seed[:20]}A{seed[21:]}\n", "damaged seed"),
    ):
        path = tmp_path / "x.creds"
        if text is not None:
            path.write_text(text)
        with pytest.raises(SettingsError, match=why) as raised:
            async with Bus.connect(CommonSettings(nats_credentials=str(path)), name="test"):
                pass
        assert "DECISEC_NATS_CREDENTIALS" in str(raised.value)
        assert "SUAN" not in str(raised.value)


async def test_answers_go_to_inboxes_only(tmp_path: Path) -> None:
    """Whoever names another subject for the answer would have a service publish in its name."""
    async with nats_server(tmp_path) as server:
        await check_answers(server)


async def check_answers(server: NatsServer) -> None:
    async with (
        Bus.connect(server.settings(), name="service") as service,
        Bus.connect(server.settings(), name="client") as client,
    ):
        asked: list[str] = []

        async def answer(message: object) -> bytes:
            asked.append(getattr(message, "reply", "?"))
            return b"an answer"

        await service.subscribe("vm.req.*.*", answer)
        heard = await client.client.subscribe("vm.cmd.>")
        await all_sent(service.client)
        await client.client.publish("vm.req.acme.get", b"", reply="vm.cmd.h1.vm.boot")
        assert (await client.request("vm.req.acme.get", b"", timeout_s=5)).data == b"an answer"
        assert asked[0] == ""
        assert heard.pending_msgs == 0


async def test_the_command_line_issues_lists_and_revokes(
    bus: SecuredBus, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Files of mode 0600; no secret on the screen unless asked for; the server goes by it."""
    shell = Shell(tmp_path, capsys, monkeypatch)
    where = {"DECISEC_BUS_DIR": str(bus.folder.root)}

    def call(*words: str) -> Done:
        return shell("bus", "credentials", *words, "--json", **where)

    done = await asyncio.to_thread(call, "issue", "customer", "acme")
    made = done.json
    assert made["reloaded"] is True
    file = Path(made["path"])
    assert file.stat().st_mode & 0o777 == 0o600
    seed = next(line for line in file.read_text().splitlines() if line.startswith("SU"))
    assert seed not in done.out + done.err
    shown = (await asyncio.to_thread(call, "issue", "gateway", "g1", "--show-seed")).json
    assert shown["seed"].startswith("SU")
    again = await asyncio.to_thread(
        call, "issue", "gateway", "g2", "--public-key", shown["public_key"]
    )
    assert "issued before" in again.problem["detail"]
    wrong = await asyncio.to_thread(call, "issue", "gateway", "g2", "--public-key", seed)
    assert seed not in wrong.out + wrong.err
    settings = msgspec.structs.replace(
        bus.settings("operator", "ops"), nats_credentials=made["path"]
    )
    async with Bus.connect(settings, name="customer") as connected:
        gone = (await asyncio.to_thread(call, "revoke", "customer", "acme")).json
        assert gone["revoked"][0]["public_key"] == made["public_key"]
        async with asyncio.timeout(20):
            while connected.client.is_connected:
                await asyncio.sleep(0.02)
    listed = (await asyncio.to_thread(call, "ls", "--all")).json["credentials"]
    assert [(o["role"], o["revoked_at"] is None) for o in listed] == [
        ("operator", True), ("customer", False), ("gateway", True),
    ]  # fmt: skip
    missing = await asyncio.to_thread(call, "revoke", "customer", "acme")
    assert missing.code == 4


async def test_a_context_leads_to_a_bus_with_all_it_wants(
    bus: SecuredBus, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """TLS with an authority of its own, and credentials; each of them is needed."""
    shell = Shell(tmp_path, capsys, monkeypatch)

    def call(*words: str, **env: str) -> Done:
        return shell(*words, "--json", **env)

    place = ("--nats-url", bus.url, "--nats-ca", str(bus.folder.authority))
    credentials = str(bus.issue("operator", "ops"))
    made = await asyncio.to_thread(call, "context", "add", "bare", *place)
    assert made.code == 0
    made = await asyncio.to_thread(call, "context", "add", "ops", *place, "--creds", credentials)
    assert made.json["nats_credentials"] == credentials
    done = await asyncio.to_thread(call, "streams", "info", "--context", "ops")
    assert "AUDIT" in [stream["name"] for stream in done.json["streams"]]
    refused = await asyncio.to_thread(call, "streams", "info", DECISEC_CONTEXT="bare")
    assert refused.code == Exit.DENIED


def test_no_customer_is_called_as_somebody_else_is(tmp_path: Path) -> None:
    """The operators' name in the audit, all roles, and what accounts are called: none is issued."""
    bus = SecuredBus(tmp_path / "bus")
    words = {OPERATOR, *bus.folder.roles.names, CORE.lower(), SYSTEM.lower()}
    assert words <= RESERVED_CUSTOMERS
    for name in RESERVED_CUSTOMERS:
        with pytest.raises(FatalError, match="the name is reserved"):
            bus.folder.issue("customer", name)
    bus.folder.issue("agent", "gateway")
    assert [(o.role, o.name) for o in bus.folder.registry.good] == [("agent", "gateway")]


def test_a_configuration_that_the_server_refuses_replaces_none(tmp_path: Path) -> None:
    """The former one stays, and so do those who are let in by it."""
    bus = SecuredBus(tmp_path / "bus")
    bus.issue("operator", "ops")
    former = (bus.folder.root / "accounts.conf").read_bytes()
    (bus.folder.root / "local.conf").write_text("no_such_word: 1\n")
    with pytest.raises(FatalError, match="no_such_word"):
        bus.folder.issue("gateway", "g1")
    assert (bus.folder.root / "accounts.conf").read_bytes() == former
    assert [one.role for one in bus.folder.registry.good] == ["operator"]
