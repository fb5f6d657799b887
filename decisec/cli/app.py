"""The command tree and its main: parses, runs, and turns every error into a code and a sentence."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from importlib import metadata
from typing import Any

import typer

from decisec.cli import (
    account,
    admin,
    audit,
    backfill,
    bus,
    bus_messages,
    chosen,
    completion,
    contexts,
    dev,
    doctor,
    events,
    flood,
    gaps,
    hosts,
    images,
    logs,
    metrics,
    network,
    network_check,
    network_peers,
    offered_images,
    operations,
    place,
    rejected,
    replay,
    services,
    snapshots,
    store,
    streams,
    tail,
    tokens,
    usage,
    vm,
    vm_changes,
    vm_config,
    vm_create,
)
from decisec.cli.exits import EPILOG, CommandError, Exit, Failure, failure_of
from decisec.cli.output import Json, show_json, tell

app = typer.Typer(
    name="decisec",
    help="Runs microVMs on many hosts and meters every one of them each 100 ms.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
vm_create.register(vm.app)
logs.register(vm.app)
vm_changes.register(vm.app)
vm.app.add_typer(vm_config.app, name="config")
app.add_typer(contexts.app, name="context")
app.add_typer(vm.app, name="vm")
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(operations.app, name="operation")
offered_images.register(images.app)
app.add_typer(images.app, name="image")
network_peers.register(network.app)
network_check.register(network.app)
app.add_typer(network.app, name="network")
app.add_typer(hosts.app, name="host")
app.add_typer(place.app, name="place")
app.add_typer(doctor.app, name="doctor")
app.add_typer(admin.app, name="admin")
app.add_typer(tokens.app, name="token")
app.add_typer(streams.app, name="streams")
bus_messages.register(bus.app)
app.add_typer(bus.app, name="bus")
app.add_typer(tail.app, name="tail")
app.add_typer(rejected.app, name="rejected")
app.add_typer(store.app, name="store")
app.add_typer(backfill.app, name="backfill")
account.register(app)
completion.register(app)
dev.register(app)
services.register(app)
flood.register(app)
usage.register(app)
events.register(app)
metrics.register(app)
replay.register(app)
gaps.register(app)
audit.register(app)


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    number = metadata.version("decisec")
    if as_json:
        show_json({"version": number})
    else:
        sys.stdout.write(f"decisec {number}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    with chosen.none_yet():
        return _run(given, as_json="--json" in given)


@functools.cache
def tree() -> Any:
    """All commands, as the library has them; made once, since it takes longer than most of them."""
    root = typer.main.get_command(app)
    chosen.add_option(root)
    return root


def _run(given: list[str], *, as_json: bool) -> int:
    try:
        result = tree()(args=given, prog_name="decisec", standalone_mode=False)
    except typer.TyperException as error:
        if as_json:
            tell(Failure(error.format_message(), Exit.USAGE, "usage"), as_json=True)
        else:
            show_usage = getattr(error, "show", None)
            if show_usage is not None:
                show_usage()
        return Exit.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has had enough; the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:  # noqa: BLE001 - the last line of defence: a sentence, no traceback
        failure = failure_of(error)
        if failure is None:
            if os.environ.get("DECISEC_TRACEBACK"):
                traceback.print_exc()
            failure = Failure(
                f"this is a defect of decisec: {type(error).__name__}: {error}. "
                "Set DECISEC_TRACEBACK=1 for the whole story, and report it",
                Exit.FAILED,
                "internal",
            )
        tell(failure, as_json=as_json)
        if isinstance(error, CommandError) and failure.kind == "usage":
            return Exit.USAGE
        return int(failure.code)
    return result if isinstance(result, int) else Exit.OK
