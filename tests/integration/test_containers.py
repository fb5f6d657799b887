"""The vendors' own servers, in containers: where there is a Docker engine, nothing stands in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from testcontainers.community.clickhouse import ClickHouseContainer
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from batcher.grants import TABLES, grants, role_of
from batcher.migrations import migrate, shipped
from batcher.settings import BatcherSettings
from batcher.store import Store
from runtime.bus import Bus
from runtime.errors import FatalError
from runtime.publisher import Publisher
from runtime.reading import read_stream
from runtime.settings import CommonSettings
from runtime.streams import Drift, apply, compare, declared
from schemas.subjects import METRICS_RAW, metrics_raw
from tests.support.store import check_store, check_wrong_password, enriched, insert, reading

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

CLICKHOUSE_IMAGE = "clickhouse/clickhouse-server:25.8"
NATS_IMAGE = "nats:2.12"
NATS_PORT = 4222
PASSWORD = "correct-horse-battery-staple"
CLUSTER = """<clickhouse>
  <keeper_server>
    <tcp_port>9181</tcp_port>
    <server_id>1</server_id>
    <log_storage_path>/var/lib/clickhouse/coordination/log</log_storage_path>
    <snapshot_storage_path>/var/lib/clickhouse/coordination/snapshots</snapshot_storage_path>
    <raft_configuration>
      <server><id>1</id><hostname>localhost</hostname><port>9234</port></server>
    </raft_configuration>
  </keeper_server>
  <zookeeper><node><host>localhost</host><port>9181</port></node></zookeeper>
  <macros><shard>01</shard><replica>one</replica></macros>
  <distributed_ddl><path>/clickhouse/task_queue/ddl</path></distributed_ddl>
  <remote_servers>
    <main>
      <shard>
        <internal_replication>true</internal_replication>
        <replica><host>localhost</host><port>9000</port></replica>
      </shard>
    </main>
  </remote_servers>
</clickhouse>
"""


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
    container = ClickHouseContainer(
        CLICKHOUSE_IMAGE, username="batcher", password=PASSWORD, dbname="default"
    ).with_env("CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT", "1")
    with container as server:
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


async def test_a_customers_role_reads_that_customers_rows_only(clickhouse_url: str) -> None:
    """Somebody with the role sees one customer; the batcher sees all, as before."""
    store = Store(BatcherSettings(store_url=clickhouse_url, store_password=PASSWORD))
    reader = Store(
        BatcherSettings(
            store_url=clickhouse_url.replace("batcher@", "reader@"), store_password=PASSWORD
        )
    )
    try:
        await migrate(store, shipped())
        await insert(store, [enriched([reading("mine"), reading("theirs")])])
        for statement in grants("mine", database="decisec", reads_all=["batcher"]):
            await store.command(statement)
        await store.command(f"CREATE USER OR REPLACE reader IDENTIFIED BY '{PASSWORD}'")
        await store.command(f"GRANT {role_of('mine')} TO reader")
        for table in TABLES[:-1]:
            asked = f"SELECT DISTINCT customer_id FROM {table}"  # noqa: S608
            assert {row[0] for row in await reader.query(asked)} == {"mine"}
            assert {"mine", "theirs"} <= {row[0] for row in await store.query(asked)}
        with pytest.raises(FatalError):
            await reader.query("SELECT * FROM audit_log")
    finally:
        await reader.close()
        await store.close()


async def test_a_cluster_keeps_the_tables_on_its_replicas(tmp_path: Path) -> None:
    """One replica with a Keeper of its own: the rendered schema applies, and the checks hold."""
    config = tmp_path / "cluster.xml"
    config.write_text(CLUSTER)
    container = ClickHouseContainer(
        CLICKHOUSE_IMAGE, username="batcher", password=PASSWORD, dbname="default"
    ).with_volume_mapping(str(config), "/etc/clickhouse-server/config.d/cluster.xml", "ro")
    with container as server:
        url = f"http://batcher@{server.get_container_host_ip()}:{server.get_exposed_port(8123)}"
        store = Store(BatcherSettings(store_url=url, store_password=PASSWORD, store_cluster="main"))
        try:
            await check_store(store)
            rows = await store.query(
                "SELECT name, engine FROM system.tables"
                " WHERE database = 'decisec' AND engine LIKE '%MergeTree'"
            )
        finally:
            await store.close()
    assert {"samples", "usage_minute", "schema_migrations"} <= {row[0] for row in rows}
    assert all(str(row[1]).startswith("Replicated") for row in rows)


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
