"""`decisec token revoke` and `decisec token ls`: tokens that no gateway is to take any more."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.acts import Reason, ask_reason, operator
from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from schemas.tokens import Revocation, RevokedBy


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=EPILOG)(revoke)
    app.command("ls", epilog=EPILOG)(list_revocations)


def revoke(
    jti: Annotated[
        str, typer.Option(help="The token of this id (`jti`).", show_default=False)
    ] = "",
    token_file: Annotated[
        str,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="The token in a file; - is standard input.",
            show_default=False,
        ),
    ] = "",
    subject: Annotated[
        str, typer.Option(help="All tokens of this subject (`sub`).", show_default=False)
    ] = "",
    customer: Annotated[
        str, typer.Option(help="All tokens of this customer.", show_default=False)
    ] = "",
    issued_before: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="With --subject and --customer: only those issued before (RFC 3339, or -2h).",
            show_default="now",
        ),
    ] = "",
    reason: Reason = "",
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Let no gateway take a token any more, or all that somebody has been issued so far.

    Every gateway follows within a second; one that does not hear of revocations for a minute takes
    no token at all. It cannot be taken back: new tokens are good, of subject and customer as well.
    """
    from rich.text import Text

    from decisec.tokens import TokenRevocations

    by, value = _which(jti, token_file, subject, customer)
    before = _before(by, issued_before)
    reason = ask_reason(reason)

    async def act() -> tuple[Revocation, bool]:
        async with bus(nats_url, state_dir) as connection:
            return await TokenRevocations(connection).revoke(
                by, value, issued_before=before, reason=reason, requested_by=operator()
            )

    stands, changed = asyncio.run(act())
    if as_json:
        show_json({"changed": changed, "revocation": stands})
        return
    show(Text(("" if changed else "stands already: ") + _sentence(stands)))


def list_revocations(
    as_json: Json = False, nats_url: NatsUrl = "", state_dir: StateDirectory = DEFAULT_STATE
) -> None:
    """List what is revoked. Entries go after 31 days: no token lives as long."""
    from rich.text import Text

    from decisec.tokens import TokenRevocations

    async def read() -> list[Revocation]:
        async with bus(nats_url, state_dir) as connection:
            return await TokenRevocations(connection).all()

    found = asyncio.run(read())
    if as_json:
        show_json({"revocations": found})
        return
    for one in found:
        show(Text(f"{_sentence(one)} ({one.reason}; {one.requested_by})"))


def _sentence(one: Revocation) -> str:
    at = one.revoked_at.isoformat(timespec="seconds")
    # A subject is the issuer's text, and may hold anything.
    name = one.value if one.value.isprintable() else ascii(one.value)
    if one.issued_before is None:
        return f"token {name} is revoked since {at}"
    before = one.issued_before.isoformat(timespec="seconds")
    return f"tokens of {one.by.value} {name} issued before {before} are revoked since {at}"


def _which(jti: str, token_file: str, subject: str, customer: str) -> tuple[RevokedBy, str]:
    from schemas.errors import InvalidIdError
    from schemas.ids import token as checked
    from schemas.tokens import RevokedBy

    if sum(map(bool, (jti, token_file, subject, customer))) != 1:
        raise CommandError(
            "give one of --jti, --token-file, --subject and --customer", Exit.USAGE, "usage"
        )
    if token_file:
        return RevokedBy.JTI, _jti_of(token_file)
    try:
        if customer:
            return RevokedBy.CUSTOMER, checked(customer)
    except InvalidIdError as error:
        raise CommandError(f"--customer: {error}", Exit.USAGE, "usage") from error
    value = jti or subject
    if len(value) > 255:
        raise CommandError("no gateway takes one of more than 255 characters", Exit.USAGE, "usage")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CommandError("give it as UTF-8", Exit.USAGE, "usage") from error
    return (RevokedBy.JTI, jti) if jti else (RevokedBy.SUBJECT, subject)


def _jti_of(file: str) -> str:
    """What a token calls itself; whether it is a good one does not matter here."""
    try:
        text = sys.stdin.read(65_536) if file == "-" else Path(file).read_text()
        payload = text.strip().split(".")[1].encode()
        claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
        jti, subject = claims.get("jti"), claims.get("sub")
    except OSError as error:
        raise CommandError(f"--token-file: {error.strerror}", Exit.USAGE, "usage") from error
    except (ValueError, IndexError, AttributeError, RecursionError) as error:
        raise CommandError("--token-file: that is no token", Exit.USAGE, "usage") from error
    if not isinstance(jti, str) or not jti:
        raise CommandError(
            f"--token-file: the token has no id (jti); revoke by --subject {str(subject)[:80]!r}",
            Exit.USAGE,
            "no_jti",
        )
    return jti


def _before(by: RevokedBy, text: str) -> datetime | None:
    from decisec.cli.acts import bound
    from runtime.clock import utc_now
    from schemas.tokens import RevokedBy

    if by is RevokedBy.JTI:
        if text:
            raise CommandError(
                "--issued-before: only with --subject and --customer", Exit.USAGE, "usage"
            )
        return None
    now = utc_now()
    at = bound("--issued-before", text) if text else now
    if not isinstance(at, datetime):
        raise CommandError("--issued-before: a time is needed", Exit.USAGE, "usage")
    if at > now:
        raise CommandError(
            "--issued-before: a time to come would strike tokens that are not issued yet",
            Exit.USAGE,
            "usage",
        )
    return at
