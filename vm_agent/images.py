"""The host's image store: what a VM's spec may name, and what its guest's kernel may be told.

`<store>/<name>/image.json` describes an image, its files lie beside it. Callers name images by
token only; paths come out of here and never go in from a customer.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from schemas.errors import InvalidIdError
from schemas.ids import token
from schemas.vms import KernelArgName

_MANIFEST = "image.json"
_FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class ImageError(Exception):
    """An image is unknown, damaged or asked for in a wrong way. Fit for the one who asked."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `image.json`.

    Attributes:
        kernel: File name of the kernel: an ELF image with a PVH entry; for QEMU also a bzImage.
        kernel_sha256: Its digest, hexadecimal.
        initrd: File name of the initial RAM disk; empty if there is none.
        architecture: As `uname -m` says it.
        allowed_args: Names of the kernel arguments that a spec may set.
        driver_args: Arguments that the guest always gets, by driver name; `*` is for all others.
    """

    kernel: _FileName
    kernel_sha256: _Digest
    initrd: _FileName | None = None
    initrd_sha256: _Digest | None = None
    architecture: str = "x86_64"
    allowed_args: tuple[KernelArgName, ...] = ()
    driver_args: dict[str, str] = msgspec.field(default_factory=dict)


_decode_manifest = msgspec.json.Decoder(Manifest).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image whose files have been checked."""

    name: str
    kernel: Path
    initrd: Path | None
    manifest: Manifest


class ImageStore:
    """Images in one directory. Digests are checked when an image is opened for the first time.

    Args:
        directory: Made when the first image is added.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._opened: dict[str, Image] = {}

    def names(self) -> list[str]:
        """The images that are there, in order."""
        if not self._directory.is_dir():
            return []
        return sorted(path.parent.name for path in self._directory.glob(f"[a-z0-9]*/{_MANIFEST}"))

    def open(self, name: str) -> Image:
        """Look an image up. Reads the whole files the first time, so call it off the event loop.

        Raises:
            ImageError: There is no such image, its files are not what its manifest says, or it
                is made for another architecture.
        """
        try:
            directory = self._directory / token(name)
        except InvalidIdError as error:
            raise ImageError(str(error)) from error
        try:
            manifest = _decode_manifest((directory / _MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageError(f"there is no image {name!r} on this host") from error
        except (OSError, msgspec.MsgspecError) as error:
            raise ImageError(f"image {name!r} cannot be read: {error}") from error
        known = self._opened.get(name)
        if known is not None and known.manifest == manifest:
            return known
        if manifest.architecture != platform.machine():
            raise ImageError(f"image {name!r} is for {manifest.architecture}")
        kernel = _checked(name, directory / manifest.kernel, manifest.kernel_sha256)
        initrd = None
        if manifest.initrd is not None:
            initrd = _checked(name, directory / manifest.initrd, manifest.initrd_sha256)
        image = Image(name=name, kernel=kernel, initrd=initrd, manifest=manifest)
        self._opened[name] = image
        return image

    def add(
        self,
        name: str,
        kernel_path: Path,
        *,
        allowed_args: Iterable[str] = (),
        initrd_path: Path | None = None,
        driver_args: Mapping[str, str] | None = None,
        architecture: str = "x86_64",
    ) -> Image:
        """Copy an image's files into the store; whole or not at all.

        An image of that name is replaced; VMs that run keep the files that they have open.

        Raises:
            ImageError: The name is no token, a file is missing, an argument's name is none.
        """
        try:
            target = self._directory / token(name)
        except InvalidIdError as error:
            raise ImageError(str(error)) from error
        self._directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".new-", dir=self._directory))
        try:
            manifest = {
                "kernel": "kernel",
                "kernel_sha256": _copy(kernel_path, work / "kernel"),
                "architecture": architecture,
                "allowed_args": sorted(allowed_args),
                "driver_args": dict(driver_args or {}),
            }
            if initrd_path is not None:
                manifest["initrd"] = "initrd"
                manifest["initrd_sha256"] = _copy(initrd_path, work / "initrd")
            content = msgspec.json.format(msgspec.json.encode(manifest))
            _decode_manifest(content)
            (work / _MANIFEST).write_bytes(content)
            work.chmod(0o755)
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=".old-", dir=self._directory))
                target.rename(old / name)
                work.rename(target)
                shutil.rmtree(old)
            else:
                work.rename(target)
        except (OSError, msgspec.MsgspecError) as error:
            raise ImageError(f"image {name!r} cannot be added: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self._opened.pop(name, None)
        return self.open(name)


def render_kernel_args(image: Image, driver: str, spec_args: Mapping[str, str]) -> str:
    """The kernel command line: the image's own arguments for that driver, then the spec's.

    Raises:
        ImageError: The spec sets an argument that is not on the image's allow-list.
    """
    allowed = image.manifest.allowed_args
    for name in spec_args:
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise ImageError(
                f"image {image.name!r} does not take the kernel argument {name!r}; "
                f"it takes: {known}"
            )
    fixed = image.manifest.driver_args
    own = fixed.get(driver, fixed.get("*", ""))
    return " ".join([*own.split(), *(f"{name}={value}" for name, value in spec_args.items())])


def _checked(name: str, path: Path, digest: str | None) -> Path:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"image {name!r} cannot be read: {error}") from error
    if found != digest:
        raise ImageError(f"image {name!r} is damaged: {path.name} has another SHA-256 digest")
    return path


def _copy(source: Path, target: Path) -> str:
    """Copy a file, durably, and return its digest."""
    with source.open("rb") as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, 1024 * 1024)
        copy.flush()
        os.fsync(copy.fileno())
    target.chmod(0o444)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
