"""`decisec image …`: the image store of the host that this is run on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.image_host import DataDirectory, ImageDirectory, ImageHost, image_host, told
from decisec.cli.output import Json, say, show, show_json

if TYPE_CHECKING:
    from vm_agent.images import Image, Progress

app = typer.Typer(
    help="Import, list, check and remove the images that VMs of this host can name.",
    no_args_is_help=True,
    epilog=EPILOG,
)

DAMAGED = 1
"""Exit code of `verify` when an image is not what it was when it was imported."""

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the image.")]


def _file(help_text: str) -> Any:
    return typer.Option(metavar="FILE", help=help_text, show_default=False)


@app.command("import", epilog=EPILOG)
def import_image(
    name: Name,
    kernel: Annotated[Path, _file("Kernel: an ELF vmlinux, or a bzImage (not for Firecracker).")],
    initrd: Annotated[Path | None, _file("Initial RAM disk.")] = None,
    rootfs: Annotated[
        Path | None, _file("Root file system, a raw disk: what each VM's own disk begins with.")
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Kernel argument that VMs may set; may be repeated."),
    ] = None,
    default_args: Annotated[
        str,
        typer.Option(
            metavar="ARGS", help="Kernel arguments that guests always get.", show_default=False
        ),
    ] = "",
    default_args_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DRIVER=ARGS", help="The same for one hypervisor, instead; may be repeated."
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="A word for people.", show_default=False)] = "",
    arch: Annotated[
        str,
        typer.Option(help="What the kernel must be for; by default as this host.",
                     show_default=False),
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an image of that name, if there is one.")
    ] = False,
    as_json: Json = False,
    image_dir: ImageDirectory = "",
    data_dir: DataDirectory = "",
) -> None:  # fmt: skip
    """Copy an image into the store; whole or not at all."""
    import platform

    from vm_agent.image_input import KernelFormat, check_initrd, check_kernel, check_rootfs

    host = image_host(image_dir, data_dir)
    architecture = arch or platform.machine()
    with told():
        kernel_format = check_kernel(kernel, architecture)
        if initrd is not None:
            check_initrd(initrd)
        if rootfs is not None:
            check_rootfs(rootfs)
        host.make_data_dir()
        with _bar() as progress:
            image = host.store.add(
                name,
                kernel,
                initrd_path=initrd,
                rootfs_path=rootfs,
                allowed_args=arg or [],
                driver_args=_driver_args(default_args, default_args_for or []),
                architecture=architecture,
                description=description,
                replace=replace,
                progress=progress,
                waiting=lambda: say("another import is at work in this store; waiting for its end"),
            )
    if kernel_format is KernelFormat.BZIMAGE:
        say("note: the kernel is a bzImage, which QEMU boots and Firecracker does not")
    if as_json:
        show_json({"image": _document(image)})
    else:
        parts = ", ".join(f"{part} {_size(path)}" for part, path in _parts(image).items())
        show(f"image {name} imported: {parts}")


@app.command("ls", epilog=EPILOG)
def list_images(
    as_json: Json = False, image_dir: ImageDirectory = "", data_dir: DataDirectory = ""
) -> None:
    """List the images; their files are not read."""
    from vm_agent.images import ImageError

    host = image_host(image_dir, data_dir)
    found: list[tuple[str, Image | None, str]] = []
    with told():
        for name in host.store.folders():
            try:
                found.append((name, host.store.look(name), ""))
            except ImageError as error:
                found.append((name, None, str(error)))
        users = host.users().of_image
    if as_json:
        documents = [
            {
                **(_document(image) if image else {"name": name}),
                "vms": users.get(name, []),
                "problem": problem,
            }
            for name, image, problem in found
        ]
        show_json({"image_dir": str(host.directory), "images": documents})
        return
    from rich.table import Table

    table = Table()
    for heading in ("name", "arch"):
        table.add_column(heading, no_wrap=True)
    for heading in ("kernel", "initrd", "rootfs", "VMs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("imported (UTC)", "description"):
        table.add_column(heading)
    for name, image, problem in found:
        vms = str(len(users.get(name, [])))
        if image is None:
            table.add_row(name, "-", "-", "-", "-", vms, "-", problem)
            continue
        manifest = image.manifest
        table.add_row(
            name,
            manifest.architecture,
            *(_size(path) for path in (image.kernel, image.initrd, image.rootfs)),
            vms,
            f"{manifest.imported_at:%Y-%m-%d %H:%M}" if manifest.imported_at else "-",
            manifest.description,
        )
    show(table)


@app.command("rm", epilog=EPILOG)
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of images.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also if VMs, or the agent itself, need it.")
    ] = False,
    as_json: Json = False,
    image_dir: ImageDirectory = "",
    data_dir: DataDirectory = "",
) -> None:
    """Remove images that no VM of this host uses; all that are named, or none."""
    host = image_host(image_dir, data_dir)
    wanted = list(dict.fromkeys(names))
    with told():
        for name in wanted:
            host.require(name)
        if not force:
            _refuse_used(host, wanted)
        for name in wanted:
            host.store.remove(name)
            if not as_json:
                show(f"image {name} removed")
    if as_json:
        show_json({"removed": wanted})


@app.command(epilog=EPILOG)
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Names; all images without.")
    ] = None,
    as_json: Json = False,
    image_dir: ImageDirectory = "",
    data_dir: DataDirectory = "",
) -> None:
    """Read all of the images' files and compare their digests; exit code 1 if one is damaged."""
    from vm_agent.images import ImageError

    host = image_host(image_dir, data_dir)
    with told():
        for name in names or []:
            host.require(name)
        wanted = list(dict.fromkeys(names)) if names else host.store.folders()
        cleared = host.store.tidy()
        problems = {}
        with _bar() as progress:
            for name in wanted:
                try:
                    host.store.verify(name, progress)
                except ImageError as error:
                    problems[name] = str(error)
    if as_json:
        images = [{"name": name, "problem": problems.get(name, "")} for name in wanted]
        show_json({"images": images, "damaged": list(problems), "leftovers_removed": cleared})
    else:
        if cleared:
            say(f"unfinished imports removed: {cleared}")
        for problem in problems.values():
            show(problem)
        show(f"{len(wanted) - len(problems)} of {len(wanted)} images are as they were imported")
    if problems:
        raise typer.Exit(DAMAGED)


def _refuse_used(host: ImageHost, names: list[str]) -> None:
    users = host.users()
    if users.unreadable:
        raise CommandError(
            f"the VM record {users.unreadable[0]} cannot be read, so its image is not known; "
            "repair it, or say --force",
            Exit.FAILED,
            "unknown_use",
        )
    for name in names:
        if vms := users.of_image.get(name):
            raise CommandError(
                f"VMs of this host use image {name!r} and could not boot again: "
                f"{', '.join(vms[:3])}{', …' if vms[3:] else ''}; delete them, or say --force",
                Exit.FAILED,
                "image_in_use",
            )
        if name == host.probe_image:
            raise CommandError(
                f"image {name!r} is what the agent boots at its start to choose a hypervisor "
                "(its setting probe_image); without it no agent starts here. To remove it all "
                "the same, say --force",
                Exit.FAILED,
                "image_in_use",
            )


def _driver_args(default: str, given: list[str]) -> dict[str, str]:
    import typing

    from vm_agent.settings import AgentSettings

    known = set(typing.get_args(typing.get_type_hints(AgentSettings)["driver"])) - {"auto"}
    found = {"*": default} if default else {}
    for pair in given:
        driver, equals, args = pair.partition("=")
        if not equals or driver not in known or driver in found:
            raise CommandError(
                f"--default-args-for: {pair!r} is not DRIVER=ARGS with a DRIVER of "
                f"{', '.join(sorted(known))}, each once",
                Exit.USAGE,
                "usage",
            )
        found[driver] = args
    return found


def _parts(image: Image) -> dict[str, Path]:
    parts = {"kernel": image.kernel, "initrd": image.initrd, "rootfs": image.rootfs}
    return {part: path for part, path in parts.items() if path is not None}


def _document(image: Image) -> dict[str, Any]:
    manifest = image.manifest
    digests = manifest.files()
    return {
        "name": image.name,
        "description": manifest.description,
        "architecture": manifest.architecture,
        "imported_at": manifest.imported_at,
        "allowed_args": manifest.allowed_args,
        "driver_args": manifest.driver_args,
        "files": {
            part: {"bytes": _bytes(path), "sha256": digests[path.name]}
            for part, path in _parts(image).items()
        },
    }


def _bytes(path: Path) -> int | None:
    """The size of a file of the store; None where it is missing."""
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _size(path: Path | None) -> str:
    from decisec.live.quantities import size

    count = _bytes(path) if path is not None else None
    if count is None:
        return "-" if path is None else "missing"
    return size(count)


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A progress bar on the terminal, for files that take their time; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from decisec.cli.output import console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        )
