"""The vendors' own servers, in containers: where there is a Docker engine, nothing stands in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from testcontainers.community.clickhouse import ClickHouseContainer
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from batcher.settings import BatcherSettings
from batcher.store import Store
from runtime.bus import Bus
from runtime.publisher import Publisher
from runtime.reading import read_stream
from runtime.settings import CommonSettings
from runtime.streams import Drift, apply, compare, declared
from schemas.subjects import METRICS_RAW, metrics_raw
from tests.support.store import check_store, check_wrong_password

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

CLICKHOUSE_IMAGE = "clickhouse/clickhouse-server:25.8"
NATS_IMAGE = "nats:2.12"
NATS_PORT = 4222
PASSWORD = "correct-horse-battery-staple"


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    # In a process of its own: the client leaves a socket open when nobody answers.
    asked = subprocess.run(
        [sys.executable, "-c", "import docker; docker.from_env().ping()"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if asked.returncode:
        pytest.skip(f"no Docker engine: {asked.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def clickhouse_url() -> Iterator[str]:
    """A ClickHouse server."""
    with ClickHouseContainer(
        CLICKHOUSE_IMAGE, username="batcher", password=PASSWORD, dbname="default"
    ) as server:
        yield f"http://batcher@{server.get_container_host_ip()}:{server.get_exposed_port(8123)}"


async def test_a_clickhouse_server_takes_what_the_embedded_store_takes(clickhouse_url: str) -> None:
    """The same checks as for chDB, by the same client."""
    store = Store(BatcherSettings(store_url=clickhouse_url, store_password=PASSWORD))
    try:
        await check_store(store)
    finally:
        await store.close()


async def test_a_clickhouse_server_refuses_a_wrong_password(clickhouse_url: str) -> None:
    """Fatal, as for the stand-in, and without the password in the message."""
    await check_wrong_password(clickhouse_url)


async def test_a_nats_server_takes_the_streams() -> None:
    """The declaration applies to the oldest server that is supported, and messages are kept."""
    container = DockerContainer(NATS_IMAGE).with_command("-js").with_exposed_ports(NATS_PORT)
    with container.waiting_for(LogMessageWaitStrategy("Server is ready")) as server:
        host, port = server.get_container_host_ip(), server.get_exposed_port(NATS_PORT)
        settings = CommonSettings(nats_url=f"nats://{host}:{port}")
        async with Bus.connect(settings, name="containers") as bus:
            await apply(bus, declared())
            assert {d.drift for d in await compare(bus, declared())} == {Drift.SAME}
            publisher = Publisher(bus)
            for _ in range(2):
                await publisher.publish(metrics_raw("h1"), b"frame", msg_id="h1:1")
            assert [m.data for m in await read_stream(bus, METRICS_RAW)] == [b"frame"]
