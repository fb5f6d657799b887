"""Which API a command talks to, and as whom: options, then environment, then a local stack."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from decisec.dev.endpoint import Endpoint
    from decisec.sdk import Client
    from runtime.bus import Bus

DEFAULT_STATE = Path(".decisec")
_NATS_WITHIN_S = 5.0

ApiUrl = Annotated[
    str, typer.Option(envvar="DECISEC_API_URL", help="Address of the API.", show_default=False)
]
Token = Annotated[
    str,
    typer.Option(envvar="DECISEC_TOKEN", help="Bearer token; better set as variable.",
                 show_default=False, show_envvar=True),
]  # fmt: skip
StateDirectory = Annotated[
    Path,
    typer.Option(
        "--state-dir",
        envvar="DECISEC_STATE_DIR",
        help="State directory of a `decisec dev`, whose address and token are the defaults.",
        file_okay=False,
    ),
]
NatsUrl = Annotated[
    str, typer.Option(envvar="DECISEC_NATS_URL", help="Address of the bus.", show_default=False)
]


def endpoint(state_dir: Path) -> Endpoint | None:
    """The local stack that runs, if any."""
    from decisec.dev.endpoint import read_endpoint

    return read_endpoint(state_dir)


def api_client(api_url: str, token: str, state_dir: Path) -> Client:
    """A client of the API.

    Raises:
        CommandError: Nothing says where the API is, or as whom to ask.
    """
    from decisec.sdk import Client

    url, bearer = api_address(api_url, token, state_dir)
    return Client(base_url=url, token=bearer)


def api_address(api_url: str, token: str, state_dir: Path) -> tuple[str, str]:
    """Where the API is, and the token to ask with.

    Raises:
        CommandError: Nothing says where the API is, or as whom to ask.
    """
    local = endpoint(state_dir) if not (api_url and token) else None
    url = api_url or (local.api_url if local else "")
    # The local stack's token is of no use, and no business, elsewhere.
    ours = local is not None and url.rstrip("/") == local.api_url
    bearer = token or (local.token if local and ours else "")
    if not url:
        raise CommandError(
            f"no API address: start `decisec dev` (none runs on {state_dir}), "
            "or give --api-url or DECISEC_API_URL",
            Exit.UNREACHABLE,
            "no_address",
        )
    if not bearer:
        raise CommandError(f"no token for {url}: give DECISEC_TOKEN", Exit.DENIED, "no_token")
    return url, bearer


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
    from runtime.settings import CommonSettings
    from runtime.telemetry import redact

    local = endpoint(state_dir) if not nats_url else None
    url = nats_url or (local.nats_url if local else "")
    if not url:
        raise CommandError(
            f"no bus address: start `decisec dev` (none runs on {state_dir}), "
            "or give --nats-url or DECISEC_NATS_URL",
            Exit.UNREACHABLE,
            "no_address",
        )
    settings = CommonSettings(
        nats_url=url,
        nats_credentials=os.environ.get("DECISEC_NATS_CREDENTIALS", ""),
        nats_ca=os.environ.get("DECISEC_NATS_CA", ""),
        nats_certificate=os.environ.get("DECISEC_NATS_CERTIFICATE", ""),
        nats_key=os.environ.get("DECISEC_NATS_KEY", ""),
    )
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
                f"NATS does not answer at {redact(url)} within {_NATS_WITHIN_S:g} s",
                Exit.UNREACHABLE,
                "unreachable",
            ) from error
        yield connected
