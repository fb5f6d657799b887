"""The schema for replicas: rendered from the files, and valid by ClickHouse's own parser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from batcher.cluster import render
from batcher.migrations import shipped
from batcher.settings import BatcherSettings
from batcher.store import Store
from runtime.errors import FatalError

GOLDEN = Path(__file__).parent / "golden" / "samples_on_cluster.sql"
STATEMENTS = [
    pytest.param(statement, id=f"{migration.name}-{number}")
    for migration in shipped()
    for number, statement in enumerate(migration.statements)
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    opened = Store(BatcherSettings(store_path=str(tmp_path_factory.mktemp("cluster") / "store")))
    try:
        yield opened
    finally:
        await opened.close()


async def parsed(store: Store, statement: str) -> str:
    """The statement as ClickHouse's parser writes it."""
    rows = await store.query("SELECT formatQuery({sql:String})", {"sql": statement})
    return str(rows[0][0])


def test_the_first_table_is_rendered_as_it_stands_in_the_golden_file() -> None:
    """Engine, path in Keeper, cluster and window; all else is as in the migration."""
    first = next(m for m in shipped() if m.name == "samples")
    assert render(first.statements[0], "main") + ";\n" == GOLDEN.read_text()


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_every_statement_is_valid_with_and_without_a_cluster(
    store: Store, statement: str
) -> None:
    """What changes the schema goes to all replicas, and no table is left to one of them."""
    assert render(statement, "") == statement
    plain = await parsed(store, statement)
    rendered = await parsed(store, render(statement, "main-1.x"))
    changes = bool(re.match(r"CREATE|ALTER", plain))
    assert changes == ("ON CLUSTER `main-1.x`" in rendered)
    assert len(re.findall("ENGINE = Replicated", rendered)) == plain.count("ENGINE = ")
    assert "non_replicated" not in rendered
    back = re.sub(r" ON CLUSTER `main-1.x`", "", rendered)
    back = re.sub(r"ENGINE = Replicated(\w+)\([^)]*\)", r"ENGINE = \1", back)
    assert back.replace("replicated_dedup", "non_replicated_dedup") == plain


def test_what_an_engine_is_told_stays_behind_the_path() -> None:
    """A version column, for instance."""
    rendered = render("CREATE TABLE IF NOT EXISTS t (v Int8) ENGINE = ReplacingMergeTree(v)", "c")
    assert rendered.endswith("/{table}', '{replica}', v)")


async def test_the_parser_would_refuse_what_is_no_statement(store: Store) -> None:
    """The check above can fail."""
    with pytest.raises(FatalError, match="SYNTAX_ERROR"):
        await parsed(store, "CREATE TABLE IF NOT EXISTS t ON CLUSTER ENGINE = MergeTree")
