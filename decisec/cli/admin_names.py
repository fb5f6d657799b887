"""What commands for operators have in common: names, and requests made of options."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from decisec.cli.exits import CommandError, Exit
from schemas.errors import InvalidIdError
from schemas.ids import token

_T = TypeVar("_T", bound=msgspec.Struct)


def check_name(argument: str, name: str) -> None:
    """Go on only with the name of something.

    Raises:
        CommandError: It is none.
    """
    try:
        token(name)
    except InvalidIdError as error:
        raise CommandError(f"{argument}: {error}", Exit.USAGE, "usage") from error


def request_of(fields: dict[str, object], kind: type[_T]) -> _T:
    """A request made of what was given.

    Raises:
        CommandError: It is not one.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise CommandError(str(error), Exit.USAGE, "usage") from error
