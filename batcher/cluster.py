"""The same schema on the replicas of a cluster: the shipped SQL, rendered.

The migrations are written for one server. Where `store_cluster` names a cluster of one shard, each
statement that changes the schema goes to all its replicas, and each table keeps its rows on all of
them. Digests are those of the files, so one ledger serves both.
"""

from __future__ import annotations

import re

_PATH = "'/clickhouse/tables/{shard}/{database}/{table}', '{replica}'"
"""Of a table in Keeper. `shard` and `replica` are macros of the server's own configuration."""

_TABLE = re.compile(r"^((?:CREATE TABLE IF NOT EXISTS|ALTER TABLE) \w+)", re.MULTILINE)
_VIEW = re.compile(r"^(CREATE MATERIALIZED VIEW IF NOT EXISTS \w+)", re.MULTILINE)
_DATABASE = re.compile(r"^(CREATE DATABASE IF NOT EXISTS `\w+`)", re.MULTILINE)
_ENGINE = re.compile(r"\bENGINE = (\w*MergeTree)(?:\(([^)]*)\))?")


def render(statement: str, cluster: str) -> str:
    """A statement as it runs on a cluster; as it is where there is none.

    Args:
        statement: One of a migration's, or another that changes the schema. What is put into
            tables stays as it is: a replica passes it on.
        cluster: Name of the cluster, of letters, digits, `_`, `-` and `.` only; empty for none.
    """
    if not cluster:
        return statement
    for pattern in (_TABLE, _VIEW, _DATABASE):
        statement = pattern.sub(rf"\1 ON CLUSTER '{cluster}'", statement)
    statement = _ENGINE.sub(_replicated, statement)
    return statement.replace(
        " non_replicated_deduplication_window", " replicated_deduplication_window"
    )


def _replicated(engine: re.Match[str]) -> str:
    arguments = f"{_PATH}, {engine[2]}" if engine[2] else _PATH
    return f"ENGINE = Replicated{engine[1]}({arguments})"
