"""Reading rights on a server: a role per customer that sees this customer's rows only.

`python -m batcher.grants` applies or prints them. They are an administrator's business: the batcher
itself needs no right to give rights, and an embedded store has no users.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from batcher.settings import BatcherSettings
from batcher.store import Store
from runtime.errors import DecisecError, FatalError, SettingsError
from runtime.service import EXIT_CONFIG, EXIT_FATAL
from runtime.settings import load
from runtime.telemetry import configure_logging
from schemas.errors import InvalidIdError
from schemas.ids import token

TABLES = ("samples", "usage_minute", "usage_hour", "usage_day", "vm_events")
_ALL_ROWS = "decisec_all_rows"


def role_of(customer_id: str) -> str:
    """The role's name."""
    return f"decisec_reader_{token(customer_id)}"


def grants(
    customer_id: str, *, database: str, cluster: str = "", reads_all: Sequence[str] = ()
) -> list[str]:
    """The statements that let a role read one customer's rows; safe to repeat.

    The policies come before the rights: at no moment can the role read more.

    Args:
        customer_id: Whose rows.
        database: Where the tables are.
        cluster: Name of the cluster, if the tables are on one.
        reads_all: Users who go on to see all rows, such as the batcher's: where one policy stands,
            a server may hide all rows from everybody who has none.

    Raises:
        InvalidIdError: It is no customer's id.
        ValueError: A user's name cannot be quoted.
    """
    role = _quoted(role_of(customer_id))
    on = f" ON CLUSTER '{cluster}'" if cluster else ""
    users = ", ".join(_quoted(user) for user in reads_all)
    tables = [f"{_quoted(database)}.{table}" for table in TABLES]
    statements = [f"CREATE ROLE IF NOT EXISTS {role}{on}"]
    if users:
        statements += [
            f"CREATE ROW POLICY OR REPLACE {_ALL_ROWS}{on} ON {table} "
            f"FOR SELECT USING 1 AS PERMISSIVE TO {users}"
            for table in tables
        ]
    statements += [
        f"CREATE ROW POLICY OR REPLACE {role}{on} ON {table} "
        f"FOR SELECT USING customer_id = '{customer_id}' AS PERMISSIVE TO {role}"
        for table in tables
    ]
    return statements + [f"GRANT{on} SELECT ON {table} TO {role}" for table in tables]


def _quoted(name: str) -> str:
    if not name.isprintable() or "`" in name or "\\" in name:
        raise ValueError(f"{name!r} cannot stand in a statement")
    return f"`{name}`"


async def _apply(settings: BatcherSettings, statements: Sequence[str]) -> None:
    store = Store(settings)
    try:
        for statement in statements:
            await store.command(statement)
    finally:
        await store.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply the grants by the batcher's settings, or print them with `--print`."""
    parser = argparse.ArgumentParser(prog="python -m batcher.grants")
    parser.add_argument("customer")
    parser.add_argument("--reads-all", action="append", default=[])
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args(arguments)
    configure_logging("batcher", "warning")
    logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
    try:
        settings = load(BatcherSettings, "batcher")
        settings.check()
        if settings.embedded:
            raise FatalError("an embedded store has no users and no rights: it is its batcher's")
        statements = grants(
            options.customer,
            database=settings.database,
            cluster=settings.store_cluster,
            reads_all=options.reads_all or _connecting(settings),
        )
        if not options.print:
            asyncio.run(_apply(settings, statements))
    except (SettingsError, InvalidIdError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    except DecisecError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FATAL
    sys.stdout.write("".join(f"{statement};\n" for statement in statements))
    return 0


def _connecting(settings: BatcherSettings) -> list[str]:
    """The user that the address names."""
    user = urlsplit(settings.store_url).username
    return [unquote(user) if user else "default"]


if __name__ == "__main__":
    sys.exit(main())
