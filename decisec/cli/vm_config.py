"""`decisec vm config …`: files that VMs are made from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli import completions
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show_json, show_text
from decisec.cli.templates import FIELDS, PURPOSES, Template
from decisec.cli.vm_create import VmFile

if TYPE_CHECKING:
    from decisec.cli.vm_file import Wrong
    from decisec.sdk import Client
    from schemas.api import CreateVmRequest, VmView

app = typer.Typer(
    help="Print and check files for `decisec vm create -f`.", no_args_is_help=True, epilog=EPILOG
)

_HEAD = "# decisec vm create -f THIS_FILE\n# What a field means: docs/vms.md\n\n"


@app.command(epilog=EPILOG)
def validate(
    file: VmFile,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Ask the API as well whether the image is there and the quota allows it.",
            show_default=False,
        ),
    ] = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> int:
    """Check a file, without making anything; exit code 2 if something is wrong in it."""
    import msgspec

    from decisec.cli import vm_file

    document = vm_file.read(file)
    wrongs = vm_file.wrong_in(document)
    request: CreateVmRequest | None = None
    if not wrongs:
        try:
            request = vm_file.request_of(vm_file.template_of(document), document)
        except msgspec.ValidationError as error:
            wrongs = [vm_file.Wrong("", str(error).partition(" - at ")[0])]
    if online and request is not None:
        with api_client(api_url, token, state_dir) as client:
            wrongs = _refused_there(client, request)
    if as_json:
        errors = [{"field": wrong.field, "message": wrong.message} for wrong in wrongs]
        show_json({"valid": not wrongs, "errors": errors})
        return Exit.USAGE if wrongs else Exit.OK
    if request is None or wrongs:
        raise vm_file.refused(file, wrongs)
    show_text(
        f"valid: {request.image}, {request.vcpus} vCPUs, {request.memory_mib} MiB of memory, "
        f"{request.disk_mib} MiB of disk"
    )
    return Exit.OK


@app.command("show", epilog=EPILOG)
def show_config(
    vm: Annotated[
        str,
        typer.Argument(
            metavar="[VM]",
            help="Id or name of a VM to make more of.",
            autocompletion=completions.vm_names,
        ),
    ] = "",
    template: Annotated[
        Template | None, typer.Option(help="Of this template.", show_default="minimal")
    ] = None,
    with_metadata: Annotated[
        bool,
        typer.Option(
            "--with-metadata", help="The VM's metadata as well: may be secret.", show_default=False
        ),
    ] = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Print a file to begin with: of a template, or of a VM that there is."""
    from decisec.cli import vm_file
    from decisec.cli.toml_text import to_toml
    from decisec.cli.vm import find

    if vm and template:
        raise CommandError("a VM or --template, not both", Exit.USAGE, "usage")
    head = _HEAD
    if vm:
        with api_client(api_url, token, state_dir) as client:
            view = client.get_vm(find(client, vm))
        document = vm_file.document_of(_request_of(view))
        if not with_metadata and (names := document.pop("metadata", None)):
            head += f"# Left out, since it may be secret: metadata {', '.join(names)}\n\n"
    else:
        chosen = template or Template.MINIMAL
        document = vm_file.document_of(vm_file.request_of(FIELDS[chosen]))
        head += f"# {chosen}: {PURPOSES[chosen]}\n\n"
    if as_json:
        show_json(document)
        return
    comments = {
        "image": "see: decisec image offered",
        "memory_mib": "at least 16",
        "disk_mib": "0: as large as the image's root file system, if it has one",
        "restart": "never or on-failure",
    }
    sys.stdout.write(head + to_toml(document, comments))


@app.command("templates", epilog=EPILOG)
def list_templates(as_json: Json = False) -> None:
    """List the templates and their sizes."""
    from rich.table import Table

    from decisec.cli.output import show

    if as_json:
        show_json({"templates": [{"name": one, **FIELDS[one]} for one in Template]})
        return
    table = Table()
    table.add_column("template", no_wrap=True)
    for heading in ("vCPUs", "memory", "disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("besides", "for"):
        table.add_column(heading, no_wrap=True)
    for one in Template:
        fields: dict[str, Any] = dict(FIELDS[one])
        sizes = [str(fields.pop("vcpus"))]
        sizes += [f"{fields.pop(key)} MiB" for key in ("memory_mib", "disk_mib")]
        besides = ", ".join(
            key if value is True else f"{key} {value}" for key, value in fields.items()
        )
        table.add_row(one.value, *sizes, besides or "-", PURPOSES[one])
    show(table)


def _request_of(view: VmView) -> CreateVmRequest:
    import msgspec

    from schemas.api import CreateVmRequest

    fields = msgspec.to_builtins(view.spec)
    return msgspec.convert({**fields, "name": view.name}, CreateVmRequest)


def _refused_there(client: Client, request: CreateVmRequest) -> list[Wrong]:
    """What the API would refuse now."""
    from decisec.cli.vm_file import Wrong

    found = []
    images = client.list_images()
    if request.image not in images:
        found.append(Wrong("image", f"no host has it; there are {', '.join(images) or 'none'}"))
    quota = client.quotas()
    wanted = {
        "vms": 1,
        "vcpus": request.vcpus,
        "memory_mib": request.memory_mib,
        "disk_mib": request.disk_mib,
    }
    for name, amount in wanted.items():
        left = getattr(quota.limits, name) - getattr(quota.used, name)
        if amount > left:
            field = "" if name == "vms" else name
            found.append(Wrong(field, f"over the quota: {amount} {name} asked for, {left} left"))
    return found
