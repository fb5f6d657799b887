"""`decisec events`: what happened to your VMs, and what happens to them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from decisec.cli import completions, vm
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, say, show_json, show_line, show_text

if TYPE_CHECKING:
    from decisec.sdk import Client
    from schemas.events import VmEvent

_MOST = 1000
_REMEMBERED = 4096
"""Events that a list has shown may come once more in what follows it."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(events)


def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")
    ] = False,
    number: Annotated[
        int, typer.Option("--number", "-n", min=0, max=_MOST, help="The last so many.")
    ] = 20,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--vm",
            metavar="VM",
            help="Only of these VMs, id or name.",
            autocompletion=completions.vm_names,
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Only these, e.g. vm_stopped.",
            autocompletion=completions.event_types,
        ),
    ] = None,
    start: Annotated[
        str, typer.Option(help="Not before this time (ISO 8601).", show_default=False)
    ] = "",
    end: Annotated[str, typer.Option(help="Before this time (ISO 8601).", show_default=False)] = "",
    after: Annotated[
        str, typer.Option(help="Follow from the `place` of an event on.", show_default=False)
    ] = "",
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show events of your VMs, the newest last; none is left out between those and what follows.

    With --follow, --json prints a line each, with its `place`; it connects again by itself.
    """
    from decisec.cli.usage import instant

    if follow and end:
        raise CommandError("--end: not with --follow", Exit.USAGE, "usage")
    if after and (not follow or start):
        raise CommandError("--after: only with --follow, and without --start", Exit.USAGE, "usage")
    with api_client(api_url, token, state_dir) as client:
        vms = [vm.find(client, one) for one in name or []]
        kinds = tuple(kind or ())
        seen: deque[UUID] = deque(maxlen=_REMEMBERED)
        place = after
        if not after:
            # With a limit of 0 the page is asked for all the same: it says where it goes on.
            page = client.event_page(
                start=instant("--start", start),
                end=instant("--end", end),
                vm_ids=vms,
                types=kinds,
                limit=max(1, number),
            )
            found = [event for event in reversed(page.events) if number]
            place = page.follow_from
            if as_json and not follow:
                show_json({"events": found, "follow_from": place})
                return
            for event in found:
                _show(event, "", as_json)
                seen.append(event.event_id)
        if follow:
            _follow(client, place, vms, kinds, seen, as_json)


def _follow(
    client: Client,
    place: str,
    vms: list[UUID],
    kinds: tuple[str, ...],
    seen: deque[UUID],
    as_json: bool,
) -> None:
    from decisec.sdk import EventsLostError

    try:
        for one in client.events(after=place, vm_ids=vms, types=kinds):
            if one.event.event_id not in seen:
                _show(one.event, one.place, as_json)
    except EventsLostError as error:
        say(str(error))
        raise CommandError(
            "the place that was given is older than what is kept; go on without --after",
            Exit.FAILED,
            "events_lost",
        ) from error


def _show(event: VmEvent, place: str, as_json: bool) -> None:
    import msgspec

    from decisec.cli.stream_lines import message_line

    row: dict[str, Any] = msgspec.to_builtins(event)
    if as_json:
        show_line({**row, "place": place} if place else row)
    else:
        show_text(message_line(row))
