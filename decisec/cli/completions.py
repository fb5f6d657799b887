"""What the Tab key offers: names that only the file of contexts, or the API, knows.

A shell waits for this with every Tab: it asks once, for a second, and says nothing when it does
not work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from decisec.sdk import Client

_WITHIN_S = 1.0
_MOST = 200
"""Names that are worth looking at."""

Offer = list[tuple[str, str]]
"""Values, each with a word of help for shells that show it."""


def _quietly(
    offer: Callable[[typer.Context, str], Offer],
) -> Callable[[typer.Context, str], Offer]:
    @functools.wraps(offer)
    def offered(context: typer.Context, incomplete: str) -> Offer:
        try:
            return [one for one in offer(context, incomplete) if one[0].startswith(incomplete)]
        except Exception:  # noqa: BLE001 - a line that is being typed is no place for an error
            return []

    return offered


def context_names(incomplete: str) -> list[str]:
    """Of the contexts that there are."""
    from decisec.cli.context_file import read
    from decisec.cli.exits import CommandError

    try:
        return [name for name in sorted(read().contexts) if name.startswith(incomplete)]
    except CommandError:
        return []


@_quietly
def vm_names(context: typer.Context, incomplete: str) -> Offer:
    """Names of VMs; ids of those without, and of all once an id is begun."""
    with _client(context) as client:
        vms = list(islice(client.list_vms(page_size=_MOST, sort="-created_at"), _MOST))
    by_id = bool(incomplete) and not any(vm.name.startswith(incomplete) for vm in vms)
    return [
        (str(vm.vm_id), f"{vm.name} {vm.state.value}".strip())
        if by_id or not vm.name
        else (vm.name, vm.state.value)
        for vm in vms
    ]


@_quietly
def image_names(context: typer.Context, incomplete: str) -> Offer:
    """Images that the API offers."""
    with _client(context) as client:
        return [(name, "") for name in client.list_images()]


@_quietly
def snapshot_ids(context: typer.Context, incomplete: str) -> Offer:
    """Snapshots that there are."""
    with _client(context) as client:
        found = list(islice(client.list_snapshots(page_size=_MOST), _MOST))
    return [(str(one.snapshot_id), f"{one.image} {one.created_at:%Y-%m-%d}") for one in found]


@_quietly
def operation_ids(context: typer.Context, incomplete: str) -> Offer:
    """Operations, the newest first."""
    with _client(context) as client:
        found = list(islice(client.list_operations(page_size=_MOST), _MOST))
    return [(str(one.operation_id), f"{one.verb} {one.status.value}") for one in found]


@_quietly
def peers(context: typer.Context, incomplete: str) -> Offer:
    """Customers that are peers, or ask to be."""
    with _client(context) as client:
        found = list(islice(client.list_peers(page_size=_MOST), _MOST))
    return [(one.customer_id, one.state.value) for one in found]


def states(incomplete: str) -> list[str]:
    """Of a VM."""
    from schemas.vms import VmState

    return [state.value for state in VmState if state.value.startswith(incomplete)]


def event_types(incomplete: str) -> list[str]:
    """What can happen to a VM."""
    from schemas.event_lists import EVENT_TYPES

    return [kind for kind in sorted(EVENT_TYPES) if kind.startswith(incomplete)]


def words(*known: str) -> Callable[[str], list[str]]:
    """Of a few that are known beforehand."""

    def offered(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return offered


@contextmanager
def _client(context: typer.Context) -> Iterator[Client]:
    from decisec.cli.connection import hasty_client

    given: dict[str, Any] = context.params
    with hasty_client(given["api_url"], given["token"], given["state_dir"], _WITHIN_S) as client:
        yield client
