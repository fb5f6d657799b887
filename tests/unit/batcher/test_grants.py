"""Reading rights: what is granted, in which order, and that ClickHouse can read it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from batcher.grants import TABLES, grants
from batcher.settings import BatcherSettings
from batcher.store import Store
from schemas.errors import InvalidIdError


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    opened = Store(BatcherSettings(store_path=str(tmp_path_factory.mktemp("grants") / "store")))
    try:
        yield opened
    finally:
        await opened.close()


def test_a_customers_role_sees_that_customers_rows() -> None:
    """As it stands here, on one server, for one table of the five."""
    found = [s for s in grants("acme-2", database="db", reads_all=["bat"]) if "usage_day" in s]
    assert found == [
        "CREATE ROW POLICY OR REPLACE decisec_all_rows ON `db`.usage_day "
        "FOR SELECT USING 1 AS PERMISSIVE TO `bat`",
        "CREATE ROW POLICY OR REPLACE `decisec_reader_acme-2` ON `db`.usage_day "
        "FOR SELECT USING customer_id = 'acme-2' AS PERMISSIVE TO `decisec_reader_acme-2`",
        "GRANT SELECT ON `db`.usage_day TO `decisec_reader_acme-2`",
    ]


@pytest.mark.parametrize("cluster", ["", "main"])
async def test_rights_come_after_the_policies_and_can_be_parsed(store: Store, cluster: str) -> None:
    """Each table has its policy before anybody may read it; all go to the whole cluster."""
    statements = grants("acme", database="db", cluster=cluster, reads_all=["bat", "ops"])
    parsed = []
    for statement in statements:
        rows = await store.query("SELECT formatQuery({sql:String})", {"sql": statement})
        parsed.append(" ".join(str(rows[0][0]).split()))
    kinds = [re.match(r"(CREATE ROLE|CREATE ROW POLICY|GRANT)", one) for one in parsed]
    order = [kind[1] for kind in kinds if kind]
    many = len(TABLES)
    assert order == ["CREATE ROLE"] + ["CREATE ROW POLICY"] * 2 * many + ["GRANT"] * many
    assert all(("ON CLUSTER" in one) == bool(cluster) for one in parsed)


@pytest.mark.parametrize("customer", ["", "a'b", "a b", "A", "x`"])
def test_what_is_no_customer_gets_no_rights(customer: str) -> None:
    """Names go into the statements as they are."""
    with pytest.raises(InvalidIdError):
        grants(customer, database="db")


def test_a_user_that_cannot_be_quoted_is_refused() -> None:
    """A backtick would end the name."""
    with pytest.raises(ValueError, match="cannot stand"):
        grants("acme", database="db", reads_all=["a` TO ALL"])
