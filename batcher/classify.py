"""What an error of the store means for the loop: a pure function from error to error class.

Numbers and names are ClickHouse's own (`src/Common/ErrorCodes.cpp`).
"""

from __future__ import annotations

import re

import pyarrow as pa
from clickhouse_connect.driver.exceptions import ClickHouseError, Error

from runtime.errors import DecisecError, FatalError, OverloadedError, PoisonError, TransientError
from runtime.telemetry import redact

OVERLOADED = frozenset(
    {
        159,  # TIMEOUT_EXCEEDED
        201,  # QUOTA_EXCEEDED
        202,  # TOO_MANY_SIMULTANEOUS_QUERIES
        241,  # MEMORY_LIMIT_EXCEEDED
        243,  # NOT_ENOUGH_SPACE
        252,  # TOO_MANY_PARTS
        439,  # CANNOT_SCHEDULE_TASK
        700,  # USER_SESSION_LIMIT_EXCEEDED
        745,  # SERVER_OVERLOADED
    }
)
BAD_DATA = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        26,  # CANNOT_PARSE_QUOTED_STRING
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        33,  # CANNOT_READ_ALL_DATA
        38,  # CANNOT_PARSE_DATE
        41,  # CANNOT_PARSE_DATETIME
        53,  # TYPE_MISMATCH
        69,  # ARGUMENT_OUT_OF_BOUND
        70,  # CANNOT_CONVERT_TYPE
        72,  # CANNOT_PARSE_NUMBER
        117,  # INCORRECT_DATA
        131,  # TOO_LARGE_STRING_SIZE
        321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
        376,  # CANNOT_PARSE_UUID
        407,  # DECIMAL_OVERFLOW
        469,  # VIOLATED_CONSTRAINT
    }
)
NO_RIGHTS = frozenset(
    {
        164,  # READONLY
        192,  # UNKNOWN_USER
        193,  # WRONG_PASSWORD
        194,  # REQUIRED_PASSWORD
        195,  # IP_ADDRESS_NOT_ALLOWED
        291,  # DATABASE_ACCESS_DENIED
        497,  # ACCESS_DENIED
        516,  # AUTHENTICATION_FAILED
    }
)
WRONG_SCHEMA = frozenset(
    {
        10,  # NOT_FOUND_COLUMN_IN_BLOCK
        16,  # NO_SUCH_COLUMN_IN_TABLE
        46,  # UNKNOWN_FUNCTION
        47,  # UNKNOWN_IDENTIFIER
        48,  # NOT_IMPLEMENTED
        60,  # UNKNOWN_TABLE
        62,  # SYNTAX_ERROR
        81,  # UNKNOWN_DATABASE
        115,  # UNKNOWN_SETTING
    }
)
TOO_MANY_ROWS = frozenset(
    {
        158,  # TOO_MANY_ROWS
        307,  # TOO_MANY_BYTES
        396,  # TOO_MANY_ROWS_OR_BYTES
    }
)
_PARTITIONS = "Too many partitions for single INSERT block"
_HTTP_STATUS = re.compile(r"HTTP status (\d{3})")


def classify(error: BaseException) -> DecisecError:
    """The error that the loop acts on.

    What is not known to be bad data, missing rights or a wrong schema counts as transient: to
    wait too long loses nothing, to set good data aside would.

    Args:
        error: What clickhouse-connect, pyarrow or the operating system raised.
    """
    if isinstance(error, DecisecError):
        return error
    text = _first_line(error)
    if isinstance(error, pa.ArrowException):
        return PoisonError("not_arrow", text)
    if isinstance(error, ClickHouseError):
        return _by_code(error.code if isinstance(error, Error) else None, text)
    return TransientError(f"the store cannot be reached: {text}")


def _by_code(code: int | None, text: str) -> DecisecError:
    # Shares its code with TOO_MANY_PARTS, but no waiting helps: the batch has to be split.
    if code in BAD_DATA or _PARTITIONS in text:
        return PoisonError("bad_data", text)
    if code in TOO_MANY_ROWS:
        return PoisonError("too_many_rows", text)
    if code in OVERLOADED:
        return OverloadedError(f"the store is overloaded: {text}")
    if code in NO_RIGHTS:
        return FatalError(f"the store refuses this user: {text}")
    if code in WRONG_SCHEMA:
        return FatalError(f"the store's tables are not those this version expects: {text}")
    status = _HTTP_STATUS.search(text)
    if code is None and status:
        match int(status[1]):
            case 401 | 403:
                return FatalError(f"the store refuses this user: {text}")
            case 429:
                return OverloadedError(f"the store is overloaded: {text}")
    return TransientError(f"the store did not answer well: {text}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return redact(text.splitlines()[0][:500])
