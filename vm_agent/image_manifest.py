"""What `image.json` says of an image, and what goes wrong with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from schemas.units import MIB
from schemas.vms import KernelArgName, Timestamp

MANIFEST = "image.json"

MAX_ROOTFS_BYTES = 1_048_576 * MIB
"""As large as the largest disk that a spec can ask for."""

_MAX_OWN_ARGS = 1024
_NO_DIGEST = "0" * 64
_FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class ImageError(Exception):
    """An image is unknown, damaged or asked for in a wrong way. Fit for the one who asked."""


class UnknownImageError(ImageError):
    """There is no image of that name."""


class ImageInputError(ImageError):
    """What was given cannot become an image; the message says why."""


class ImageExistsError(ImageInputError):
    """There is an image of that name, and it was not to be replaced."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `image.json`.

    Attributes:
        kernel: File name of the kernel: an ELF image with a PVH entry; for QEMU also a bzImage.
        kernel_sha256: Its digest, hexadecimal.
        initrd: File name of the initial RAM disk; None if there is none.
        rootfs: File name of the root file system, a raw disk that each VM gets a copy of.
        rootfs_bytes: Its size.
        architecture: As `uname -m` says it.
        allowed_args: Names of the kernel arguments that a spec may set.
        driver_args: Arguments that the guest always gets, by driver name; `*` is for all others.
        description: For people.
        imported_at: None for images from before this was noted.
    """

    kernel: _FileName
    kernel_sha256: _Digest
    initrd: _FileName | None = None
    initrd_sha256: _Digest | None = None
    rootfs: _FileName | None = None
    rootfs_sha256: _Digest | None = None
    rootfs_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROOTFS_BYTES)] | None = None
    architecture: str = "x86_64"
    allowed_args: tuple[KernelArgName, ...] = ()
    driver_args: dict[str, str] = msgspec.field(default_factory=dict)
    description: Annotated[str, msgspec.Meta(max_length=256)] = ""
    imported_at: Timestamp | None = None

    def __post_init__(self) -> None:
        """A root file system is described whole or not at all."""
        about = (self.rootfs, self.rootfs_sha256, self.rootfs_bytes)
        if len({part is None for part in about}) > 1:
            raise ValueError("rootfs, rootfs_sha256 and rootfs_bytes go together")

    def files(self, *, whole: bool = True) -> dict[str, str | None]:
        """The digest of each file, by its name; without the rootfs unless `whole`."""
        parts: list[tuple[str | None, str | None]] = [
            (self.kernel, self.kernel_sha256),
            (self.initrd, self.initrd_sha256),
        ]
        if whole:
            parts.append((self.rootfs, self.rootfs_sha256))
        return {name: sha256 for name, sha256 in parts if name is not None}


decode_manifest = msgspec.json.Decoder(Manifest).decode


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of `image.json`, for people to read too. What is not there is left out.

    Raises:
        ImageInputError: It would not be read again.
    """
    given = {name: value for name, value in msgspec.structs.asdict(manifest).items() if value}
    content = msgspec.json.format(msgspec.json.encode(given))
    try:
        decode_manifest(content)
    except msgspec.MsgspecError as error:
        raise ImageInputError(f"this cannot become an image: {error}") from error
    return content


def draft(
    *,
    architecture: str,
    allowed_args: Sequence[str],
    driver_args: Mapping[str, str],
    description: str,
) -> Manifest:
    """A manifest without files, so that what is wrong is told before gigabytes are copied.

    Raises:
        ImageInputError: An argument's name is none, or a text is too long or not printable.
    """
    for name in allowed_args:
        try:
            msgspec.convert(name, KernelArgName)
        except msgspec.ValidationError as error:
            raise ImageInputError(
                f"{name[:80]!r} is no name of a kernel argument that VMs may set: "
                "1 to 32 characters of a-z, 0-9 and '_', the first one a letter"
            ) from error
    for driver, args in driver_args.items():
        if len(args) > _MAX_OWN_ARGS or not (args.isascii() and args.isprintable()):
            raise ImageInputError(
                f"the default arguments for {driver!r} are not at most {_MAX_OWN_ARGS} printable "
                "ASCII characters"
            )
    given = {
        "kernel": "kernel",
        "kernel_sha256": _NO_DIGEST,
        "architecture": architecture,
        "allowed_args": allowed_args,
        "driver_args": driver_args,
        "description": description,
    }
    try:
        return msgspec.convert(given, Manifest)
    except msgspec.ValidationError as error:
        raise ImageInputError(f"this cannot become an image: {error}") from error
