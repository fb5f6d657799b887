"""`decisec network check`: proves that a VM can be reached, or says what is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from decisec.cli import vm
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, Exit
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from schemas.network_checks import NetworkCheck


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(check)


def check(
    name: vm.VmArgument,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Prove that a VM can be reached, with real packets; exit code 1 if that is not proven.

    Its host compares what stands for the VM with what should, sends probes to the VM's own
    addresses and says which of its rules have stopped what. Probes count as received by the VM.
    """
    with api_client(api_url, token, state_dir) as client:
        found = client.check_network(vm.find(client, name))
    if as_json:
        show_json(found)
    else:
        _show(found)
    if not found.proven:
        raise typer.Exit(Exit.FAILED)


def _show(found: NetworkCheck) -> None:
    from rich.markup import escape
    from rich.table import Table

    if found.findings:
        table = Table("what", "", "found", "round trip", box=None, pad_edge=False)
        for one in found.findings:
            took = "" if one.round_trip_us is None else f"{one.round_trip_us / 1000:.1f} ms"
            table.add_row(one.probed.value, one.outcome.value, escape(one.detail), took)
        show(table)
    for stopped in found.stopped:
        show(f"stopped meanwhile: {stopped.packets} {stopped.reason} ({stopped.meaning})")
    if found.sent_frames:
        to = ", ".join(found.addresses)
        show(f"sent: {found.sent_frames} frames, {found.sent_bytes} bytes, to {to}")
    show(f"{'proven' if found.proven else 'not proven'}: {found.summary}")
