"""Errors of the store, told apart by what the loop must do."""

from __future__ import annotations

import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, ProgrammingError
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.classify import BAD_DATA, NO_RIGHTS, OVERLOADED, TOO_MANY_ROWS, WRONG_SCHEMA, classify
from runtime.errors import DecisecError, FatalError, OverloadedError, PoisonError, TransientError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError("refused"), TransientError),
        (TimeoutError(), TransientError),
        (OperationalError("Error executing HTTP request"), TransientError),
        (DatabaseError("HTTP driver received HTTP status 503"), TransientError),
        (DatabaseError("HTTP driver received HTTP status 429"), OverloadedError),
        (DatabaseError("HTTP driver received HTTP status 403"), FatalError),
        (DatabaseError("Code: 252. Too many parts", code=252), OverloadedError),
        (DatabaseError("Memory limit", code=241), OverloadedError),
        (
            DatabaseError("Too many partitions for single INSERT block (101)", code=252),
            PoisonError,
        ),
        (DatabaseError("Constraint violated", code=469), PoisonError),
        (DatabaseError("Access denied", code=497), FatalError),
        (DatabaseError("Unknown table", code=60), FatalError),
        (DatabaseError("never heard of", code=99_999), TransientError),
        (ProgrammingError("The client has been closed"), TransientError),
        (pa.ArrowInvalid("offset overflow"), PoisonError),
    ],
)
def test_an_error_becomes_what_the_loop_must_do(error: Exception, kind: type[DecisecError]) -> None:
    """Wait, slow down, set aside or stop."""
    assert type(classify(error)) is kind


@settings(deadline=None)
@given(st.integers(0, 2000) | st.none(), st.text(max_size=200))
def test_no_error_is_left_without_a_class(code: int | None, text: str) -> None:
    """Whatever ClickHouse says, the answer is one of the four classes."""
    assert isinstance(classify(DatabaseError(text, code=code)), DecisecError)


def test_no_code_has_two_meanings() -> None:
    """The sets do not overlap."""
    sets = [OVERLOADED, BAD_DATA, NO_RIGHTS, WRONG_SCHEMA, TOO_MANY_ROWS]
    assert sum(map(len, sets)) == len(frozenset().union(*sets))


def test_our_own_errors_pass_and_passwords_do_not() -> None:
    """An error that has its class keeps it; an address in a message loses its password."""
    own = FatalError("stop")
    assert classify(own) is own
    assert "hunter2" not in str(classify(OSError("cannot reach http://u:hunter2@db:8123")))
