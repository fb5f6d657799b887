"""`decisec vm logs`: what a VM printed on its serial port."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from decisec.cli import vm
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, say, show_json

if TYPE_CHECKING:
    from decisec.sdk import Client
    from schemas.consoles import ConsoleChunk


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(logs)


def logs(
    name: vm.VmArgument,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until the VM is deleted, or Ctrl-C."),
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option(
            metavar="LINES",
            min=0,
            help="Only the last lines. Default: all that is kept.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Print what a VM printed on its serial port, over all its starts: the last MiB at least.

    The bytes are the guest's own. A terminal gets them without what could control it.
    """  # fmt: skip
    if follow and as_json:
        raise CommandError("--json prints one document: not with --follow", Exit.USAGE, "usage")
    with api_client(api_url, token, state_dir) as client:
        vm_id = vm.find(client, name)
        chunks = _kept(client, vm_id) if tail is None else _tail(client, vm_id, tail)
        if as_json:
            _show_document(vm_id, list(chunks))
            return
        write = _writer()
        offset = 0
        for chunk in chunks:
            _show(chunk, write)
            offset = chunk.next_offset
        if follow:
            for chunk in client.follow_console(vm_id, offset=offset):
                _show(chunk, write)
            say("the VM is deleted")


def _kept(client: Client, vm_id: UUID) -> Iterator[ConsoleChunk]:
    """All that is kept at the moment, in pieces; the last one may be empty."""
    chunk = client.vm_console(vm_id)
    yield chunk
    if chunk.end:
        return
    # Up to the end as it was: a guest that prints faster than this reads must not hold it here.
    end = client.vm_console(vm_id, tail_bytes=0).next_offset
    while chunk.next_offset < end and not chunk.end:
        chunk = client.vm_console(vm_id, offset=chunk.next_offset)
        yield chunk


def _tail(client: Client, vm_id: UUID, lines: int) -> Iterator[ConsoleChunk]:
    """The last lines, in one piece; a last line that is not ended yet is one."""
    import msgspec

    from schemas.consoles import MAX_CHUNK_BYTES

    found = client.vm_console(vm_id, tail_bytes=MAX_CHUNK_BYTES if lines else 0)
    # One newline for each line: that before it. The very last one ends the last line.
    while found.data.count(b"\n") - found.data.endswith(b"\n") < lines and found.offset > 0:
        size = min(MAX_CHUNK_BYTES, found.offset)
        before = client.vm_console(vm_id, offset=found.offset - size, limit_bytes=size)
        if before.next_offset != found.offset or not before.data:
            break  # it has been cut off meanwhile
        found = msgspec.structs.replace(found, data=before.data + found.data, offset=before.offset)
    begin = _begin_of(found.data, lines)
    yield msgspec.structs.replace(
        found, data=found.data[begin:], offset=found.offset + begin, lost_bytes=0
    )


def _begin_of(data: bytes, lines: int) -> int:
    """Where the last lines begin."""
    if not lines:
        return len(data)
    begin = len(data) - data.endswith(b"\n")
    for _ in range(lines):
        begin = data.rfind(b"\n", 0, begin)
        if begin < 0:
            return 0
    return begin + 1


def _show(chunk: ConsoleChunk, write: Callable[[bytes], None]) -> None:
    if chunk.lost_bytes:
        say(f"… {chunk.lost_bytes} bytes were dropped")
    write(chunk.data)


def _show_document(vm_id: UUID, chunks: list[ConsoleChunk]) -> None:
    show_json(
        {
            "vm_id": vm_id,
            "offset": chunks[0].offset,
            "next_offset": chunks[-1].next_offset,
            "lost_bytes": sum(chunk.lost_bytes for chunk in chunks),
            "data": b"".join(chunk.data for chunk in chunks),
        }
    )


def _writer() -> Callable[[bytes], None]:
    """Writes to stdout: as it is to a pipe or a file, harmless to a terminal."""
    from decisec.cli.plain_text import PlainText

    output = sys.stdout
    output.flush()
    text = PlainText() if output.isatty() else None

    def write(data: bytes) -> None:
        if text is not None:
            data = text.feed(data).encode(output.encoding, "replace")
        output.buffer.write(data)
        output.buffer.flush()

    return write
