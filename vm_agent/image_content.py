"""What is in one image's directory: read, checked, put together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from runtime.clock import utc_now
from vm_agent import disks
from vm_agent.disks import clone_file, sync
from vm_agent.image_files import (
    FILE_MODE,
    FOLDER_MODE,
    Stamp,
    digest,
    open_folder,
    read_small,
    stamp,
)
from vm_agent.image_manifest import (
    MANIFEST,
    ImageError,
    Manifest,
    decode_manifest,
    encode_manifest,
)

Progress = Callable[[str, int, int], None]
"""Told what is at work, the bytes done and all there are; what it raises ends the work."""


def read_manifest(name: str, folder: int) -> Manifest:
    """What is said of an image, from the open directory.

    Raises:
        ImageError: The manifest is missing or damaged.
    """
    try:
        return decode_manifest(read_small(MANIFEST, folder))
    except OSError as error:
        raise ImageError(f"image {name!r} is damaged: {reason(error)}") from error
    except msgspec.MsgspecError as error:
        raise ImageError(f"image {name!r} is damaged: {MANIFEST}: {error}") from error


def stamp_of(name: str, file: str, folder: int) -> Stamp:
    """The stamp of one of an image's files.

    Raises:
        ImageError: It is missing, or no regular file.
    """
    try:
        return stamp(file, folder)
    except OSError as error:
        raise ImageError(f"image {name!r} is damaged: {reason(error)}") from error


def problem_of(
    name: str, manifest: Manifest, file: str, folder: int, progress: Progress | None = None
) -> str:
    """What is wrong with the content of one of an image's files; empty if nothing is."""
    size_bytes = stamp_of(name, file, folder)[2]
    if file == manifest.rootfs and size_bytes != manifest.rootfs_bytes:
        return f"image {name!r} is damaged: {file} has another size"
    if digest(file, folder, _step(f"checking {name}/{file}", progress)) != manifest.files()[file]:
        return f"image {name!r} is damaged: {file} has another SHA-256 digest"
    return ""


def fill(
    work: Path, sources: Mapping[str, Path], manifest: Manifest, progress: Progress | None
) -> Manifest:
    """Put an image together in a directory, all its files synced.

    Args:
        work: An empty directory.
        sources: What to copy, by the part of the image that it is.
        manifest: What else is to be said of the image.
        progress: Told how far it is.

    Raises:
        OSError: A source cannot be read, or the store not be written to.
        ImageInputError: It would be no image.
    """
    found: dict[str, object] = {}
    with open_folder(work) as folder:
        for part, source in sources.items():
            path = work / part
            clone_file(source, path, _step(f"copying {part}", progress))
            path.chmod(FILE_MODE)
            sync(path)
            found[part] = part
            # Of what is stored, not of what was read: what counts is what VMs will get.
            found[f"{part}_sha256"] = digest(part, folder, _step(f"checking {part}", progress))
    if "rootfs" in sources:
        found["rootfs_bytes"] = (work / "rootfs").stat().st_size
    manifest = msgspec.structs.replace(manifest, **found, imported_at=utc_now())
    path = work / MANIFEST
    path.write_bytes(encode_manifest(manifest))
    path.chmod(FILE_MODE)
    sync(path)
    work.chmod(FOLDER_MODE)
    return manifest


def _step(what: str, progress: Progress | None) -> disks.Progress | None:
    return functools.partial(progress, what) if progress is not None else None


def reason(error: OSError | RuntimeError) -> str:
    """An error in a few words, with the path."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
