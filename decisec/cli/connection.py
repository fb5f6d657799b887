"""Which API and which bus a command talks to, and as whom.

What is said first in this list holds:

1. options (`--api-url`, `--token`, `--nats-url`, `--state-dir`), and `--context` for the rest;
2. variables (`DECISEC_API_URL`, `DECISEC_TOKEN`, `DECISEC_NATS_URL`, …);
3. the context that `DECISEC_CONTEXT` names;
4. the stack on `DECISEC_STATE_DIR`;
5. the context that `decisec context use` chose;
6. the stack that runs on `.decisec`.

A token or credentials of a context, or of a stack, go to its own address only.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli import chosen
from decisec.cli.chosen import DEFAULT_STATE as DEFAULT_STATE
from decisec.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from decisec.cli.context_file import Context
    from decisec.dev.endpoint import Endpoint
    from decisec.sdk import AsyncClient, Client
    from runtime.bus import Bus
    from runtime.settings import CommonSettings

_NATS_WITHIN_S = 5.0
_NATS_FILES = ("nats_credentials", "nats_ca", "nats_certificate", "nats_key")

ApiUrl = Annotated[
    str,
    typer.Option(envvar="DECISEC_API_URL", help="Address of the API.", show_default=False,
                 callback=chosen.unless_context),
]  # fmt: skip
Token = Annotated[
    str,
    typer.Option(envvar="DECISEC_TOKEN", help="Bearer token; better set as variable.",
                 show_default=False, show_envvar=True, callback=chosen.unless_context),
]  # fmt: skip
StateDirectory = Annotated[
    Path,
    typer.Option(
        "--state-dir",
        envvar="DECISEC_STATE_DIR",
        help="State directory of a `decisec dev`, whose address and token are the defaults.",
        file_okay=False,
        callback=chosen.unless_context_or_default,
    ),
]
NatsUrl = Annotated[
    str,
    typer.Option(envvar="DECISEC_NATS_URL", help="Address of the bus.", show_default=False,
                 callback=chosen.unless_context),
]  # fmt: skip


def endpoint(state_dir: Path) -> Endpoint | None:
    """The local stack that runs, if any: that of a context, if it names one."""
    from decisec.dev.endpoint import read_endpoint

    return read_endpoint(state_of(state_dir))


def state_of(state_dir: Path) -> Path:
    """The state directory that commands go by."""
    named = chosen.context(state_dir)
    return Path(named[1].state_dir) if named and named[1].state_dir else state_dir


def api_client(api_url: str, token: str, state_dir: Path) -> Client:
    """A client of the API.

    Raises:
        CommandError: Nothing says where the API is, or as whom to ask.
    """
    from decisec.sdk import Client

    url, bearer, authority = _api(api_url, token, state_dir)
    return Client(base_url=url, token=bearer, ca=authority)


def async_client(api_url: str, token: str, state_dir: Path) -> AsyncClient:
    """The same for asyncio.

    Raises:
        CommandError: Nothing says where the API is, or as whom to ask.
    """
    from decisec.sdk import AsyncClient

    url, bearer, authority = _api(api_url, token, state_dir)
    return AsyncClient(base_url=url, token=bearer, ca=authority)


def hasty_client(api_url: str, token: str, state_dir: Path, within_s: float) -> Client:
    """One that asks once and gives up soon, and asks nobody at the terminal.

    Raises:
        CommandError: Nothing says where the API is, or as whom to ask.
    """
    from decisec.sdk import Client

    url, bearer, authority = _api(api_url, token, state_dir, hasty=True)
    return Client(base_url=url, token=bearer, ca=authority, timeout_s=within_s, attempts=1)


def api_address(api_url: str, token: str, state_dir: Path) -> tuple[str, str]:
    """Where the API is, and the token to ask with.

    Raises:
        CommandError: Nothing says where the API is, or as whom to ask.
    """
    return _api(api_url, token, state_dir)[:2]


def _api(api_url: str, token: str, state_dir: Path, *, hasty: bool = False) -> tuple[str, str, str]:
    known = _known(state_dir) if not (api_url and token) else None
    url = api_url or (known.api_url if known else "")
    if not url:
        raise _no_address("API", "api", state_dir)
    # What is kept for one place is of no use, and no business, elsewhere.
    ours = known is not None and url.rstrip("/") == known.api_url.rstrip("/")
    bearer = token or (_bearer(known, hasty=hasty) if known and ours else "")
    if not bearer:
        raise CommandError(
            f"no token for {_shown(url)}: give DECISEC_TOKEN, or a context with a token "
            "(`decisec context add`)",
            Exit.DENIED,
            "no_token",
        )
    authority = "" if chosen.by_option() else os.environ.get("DECISEC_API_CA", "")
    return url, bearer, authority or (known.api_ca if known and ours else "")


def _known(state_dir: Path) -> Context | None:
    """What the context says, or the stack that runs here; None if there is neither."""
    import msgspec

    from decisec.cli.context_file import Context

    named = chosen.context(state_dir)
    local = endpoint(state_dir) if named is None or named[1].state_dir else None
    told = named[1] if named else Context() if local else None
    if told is None or local is None:
        return told
    return msgspec.structs.replace(
        told,
        api_url=told.api_url or local.api_url,
        nats_url=told.nats_url or local.nats_url,
        token=told.token
        or ("" if told.token_file or told.token_command or told.api_url else local.token),
    )


def _bearer(known: Context, *, hasty: bool) -> str:
    if known.token_file:
        return _token_in(Path(known.token_file))
    if known.token_command:
        from decisec.cli.token_command import token_of

        return token_of(known.token_command, hasty=hasty)
    return known.token


def _token_in(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise CommandError(
            f"the context's token file {file}: {why}", Exit.DENIED, "no_token"
        ) from error


def _no_address(what: str, option: str, state_dir: Path) -> CommandError:
    named = chosen.context(state_dir)
    if named and not named[1].state_dir:
        where = f"the context {named[0]} names none: `decisec context set {named[0]}`"
    else:
        where = (
            f"start `decisec dev` (none runs on {state_of(state_dir)}), choose a context "
            "(`decisec context use`)"
        )
    return CommandError(
        f"no {what} address: {where}, or give --{option}-url or DECISEC_{option.upper()}_URL",
        Exit.UNREACHABLE,
        "no_address",
    )


def _shown(url: str) -> str:
    from runtime.telemetry import redact

    return redact(url)


def bus_settings(nats_url: str, state_dir: Path) -> CommonSettings:
    """How to reach the bus, and with what to show there.

    Raises:
        CommandError: Nothing says where it is.
    """
    import msgspec

    from runtime.settings import CommonSettings

    known = _known(state_dir) if not nats_url else None
    url = nats_url or (known.nats_url if known else "")
    if not url:
        raise _no_address("bus", "nats", state_dir)
    files = {}
    for name in _NATS_FILES:
        given = "" if chosen.by_option() else os.environ.get(f"DECISEC_{name.upper()}", "")
        files[name] = given or (getattr(known, name) if known else "")
    return msgspec.convert({"nats_url": url, **files}, CommonSettings)


def bus_at_hand(nats_url: str, state_dir: Path) -> bool:
    """Whether a bus was named for this very command, or is that of a stack that runs here."""
    named = chosen.context(state_dir)
    here = named is None or bool(named[1].state_dir)
    return bool(nats_url) or (here and endpoint(state_dir) is not None)


@asynccontextmanager
async def bus(nats_url: str, state_dir: Path) -> AsyncIterator[Bus]:
    """A connection to the bus for the length of the block.

    Raises:
        CommandError: It is not known where, or nothing answers there.
    """
    import asyncio

    from decisec.dev.journal import journal
    from runtime.bus import Bus
    from runtime.errors import FatalError

    settings = bus_settings(nats_url, state_dir)
    async with AsyncExitStack() as exits:
        # What matters of the connection is raised; its log is not for this terminal.
        exits.enter_context(journal(Path(os.devnull)))
        try:
            async with asyncio.timeout(_NATS_WITHIN_S):
                connected = await exits.enter_async_context(Bus.connect(settings, name="cli"))
        except FatalError as error:
            raise CommandError(str(error), Exit.DENIED, "denied") from error
        except TimeoutError as error:
            raise CommandError(
                f"NATS does not answer at {_shown(settings.nats_url)} within {_NATS_WITHIN_S:g} s: "
                "is it up, and is the address right (`decisec context show`, DECISEC_NATS_URL)?",
                Exit.UNREACHABLE,
                "unreachable",
            ) from error
        yield connected
