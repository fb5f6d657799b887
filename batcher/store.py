"""The store: ClickHouse over HTTP, or chDB inside this process, behind the same few verbs.

The engine is synchronous and chDB allows one per process, so one thread of its own holds the
client and does everything in the order of the calls: nothing else ever touches it. What goes
wrong comes out as one of the errors of `runtime.errors`, by `classify`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, ProgrammingError

from batcher.classify import classify
from batcher.cluster import render
from batcher.settings import BatcherSettings
from runtime.errors import TransientError

T = TypeVar("T")

_INSERT_SETTINGS: Mapping[str, Any] = {
    # Each table decides for itself whether it has seen a token. Were the retry of an insert that
    # reached `samples` but not the rollup taken for a duplicate as a whole, the rollup would lack
    # its rows for ever.
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # Merges collapse copies anyway; doing it here too costs a quarter of the insert.
    "optimize_on_insert": 0,
    "async_insert": 0,
}
_CONNECT_S = 5
_ANSWER_S = 60


@dataclass(frozen=True, slots=True)
class Encoded:
    """A table as the engine reads it."""

    columns: Sequence[str]
    num_rows: int
    block: memoryview


class Store:
    """One client in one thread. Opened by the first call that needs it, and closed by `close`."""

    def __init__(self, settings: BatcherSettings, *, name: str = "store") -> None:
        self.database = settings.database
        self.settings = settings
        self._closed = False
        self._client: Client | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def query(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> Sequence[Sequence[Any]]:
        """The rows of a SELECT; `parameters` fill `{name:Type}` on the engine's side.

        Raises:
            TransientError, OverloadedError, PoisonError, FatalError: As `classify` says.
        """

        def call(client: Client) -> Sequence[Sequence[Any]]:
            result = client.query(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            )
            return result.result_rows

        return await self._run(call)

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Run a statement without a result. Raises as `query` does."""
        await self._run(lambda client: client.command(sql, parameters=dict(parameters or {})))

    async def change(self, sql: str) -> None:
        """Run a statement that changes the schema, on a cluster's replicas where there is one.

        Raises:
            As `query` does.
        """
        await self.command(render(sql, self.settings.store_cluster))

    def encode(self, rows: pa.Table) -> pa.Table | Encoded:
        """Do ahead, in any thread, what of an insert needs no engine.

        Only for an embedded store: its one thread then copies nothing. A client of a server
        encodes with the compression that it agreed on.
        """
        if not self.settings.embedded:
            return rows
        # A buffer that grows would copy what is in it again and again: count first.
        counted = pa.MockOutputStream()
        _write(rows, counted)
        block = pa.allocate_buffer(counted.size())
        _write(rows, pa.FixedSizeBufferWriter(block))
        return Encoded(rows.schema.names, rows.num_rows, memoryview(block))

    async def insert(self, table: str, rows: pa.Table | Encoded, *, token: str) -> None:
        """Insert a whole Arrow table at once; returns when the engine has it.

        Args:
            table: Name in this store's database.
            rows: Its columns go to the table's columns of the same names.
            token: The same token within the table's window is stored once.

        Raises:
            As `query` does. The rows may have been stored all the same: insert again.
        """
        settings = {**_INSERT_SETTINGS, "insert_deduplication_token": token}

        def call(client: Client) -> None:
            if isinstance(rows, Encoded):
                # It takes any bytes, whatever its annotation says; `bytes` would be a copy.
                block: Any = rows.block
                client.raw_insert(table, rows.columns, block, settings, "Arrow")
            else:
                client.insert_arrow(table, rows, settings=settings)

        await self._run(call)

    async def close(self) -> None:
        """Let go of the engine once what is under way is done; later calls fail."""
        self._closed = True
        try:
            await asyncio.wrap_future(self._thread.submit(self._close))
        finally:
            self._thread.shutdown(wait=False)

    async def _run(self, call: Callable[[Client], T]) -> T:
        if self._closed:
            raise TransientError("the store is closed")
        return await asyncio.wrap_future(self._thread.submit(self._call, call))

    def _call(self, call: Callable[[Client], T]) -> T:
        try:
            if self._client is None:
                self._client = self._open()
            return call(self._client)
        except (ClickHouseError, pa.ArrowException, OSError) as error:
            raise classify(error) from error

    def _open(self) -> Client:
        client = self._embedded() if self.settings.embedded else self._server()
        try:
            # CREATE needs a right of its own even where nothing is to be created.
            if not int(str(client.command(f"EXISTS DATABASE `{self.database}`"))):
                create = f"CREATE DATABASE IF NOT EXISTS `{self.database}`"
                client.command(render(create, self.settings.store_cluster))
        except ClickHouseError:
            client.close()
            raise
        client.database = self.database
        return client

    def _embedded(self) -> Client:
        path = Path(self.settings.store_path)
        path.mkdir(parents=True, exist_ok=True)
        try:
            return clickhouse_connect.get_client(interface="chdb", path=str(path))
        except ProgrammingError as error:
            raise TransientError(
                f"the store in {path} cannot be opened; does another process hold it? {error}"
            ) from error

    def _server(self) -> Client:
        parts = urlsplit(self.settings.store_url)
        return clickhouse_connect.get_client(
            interface=parts.scheme,
            host=parts.hostname,
            port=parts.port,
            username=unquote(parts.username) if parts.username else None,
            password=self.settings.store_password,
            proxy_path=parts.path.strip("/"),
            connect_timeout=_CONNECT_S,
            send_receive_timeout=_ANSWER_S,
            query_retries=0,
            autogenerate_session_id=False,
            dedicated_pool=True,
            show_clickhouse_errors="scrub",
        )

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _write(rows: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)


def keep_temporary_files_beside(store_path: str) -> None:
    """Point this process's temporary files at a folder beside the embedded store, and empty it.

    chDB takes each insert through a file: after a kill it would stay behind elsewhere for ever.
    Call it once, before the store is opened.
    """
    folder = Path(f"{store_path.rstrip('/')}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tempfile.tempdir = str(folder)
