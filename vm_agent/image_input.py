"""What an operator brings in to make an image of: told apart by its first bytes.

A wrong file would be found out otherwise only when a customer's VM does not boot.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from vm_agent.image_manifest import MAX_ROOTFS_BYTES, ImageInputError

_HEAD_BYTES = 1024

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"BZh": "bzip2",
}
_DISK_FORMATS = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdxfile": "vhdx", b"conectix": "vpc"}

# ELF: gABI 4.1, chapter 4. Offsets of the class, the type and the machine.
_ELF_64_BIT = 2
_ELF_PROGRAMS = {2, 3}  # ET_EXEC, ET_DYN
_ELF_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}

# Linux, Documentation/arch/x86/boot.rst: "HdrS", xloadflags and its bit XLF_KERNEL_64.
_BZIMAGE_MAGIC = slice(0x202, 0x206)
_BZIMAGE_FLAGS = 0x236


class KernelFormat(StrEnum):
    """How a kernel comes. Firecracker boots no bzImage."""

    ELF = "ELF"
    BZIMAGE = "bzImage"
    ARM64_IMAGE = "Image"


def check_kernel(path: Path, architecture: str) -> KernelFormat:
    """Make sure that a file is a kernel for an architecture.

    Raises:
        ImageInputError: It is not, or cannot be read; says what it is.
    """
    head = _head("kernel", path)
    if head.startswith(b"\x7fELF"):
        if len(head) < 64 or head[4] != _ELF_64_BIT or _number(head, 16) not in _ELF_PROGRAMS:
            raise ImageInputError(f"kernel {path}: an ELF file, but no 64-bit kernel (vmlinux)")
        found = _ELF_MACHINES.get(_number(head, 18), "another architecture")
        kind = KernelFormat.ELF
    elif head[_BZIMAGE_MAGIC] == b"HdrS":
        found = "x86_64" if head[_BZIMAGE_FLAGS] & 1 else "i686"
        kind = KernelFormat.BZIMAGE
    elif head[56:60] == b"ARM\x64":
        found, kind = "aarch64", KernelFormat.ARM64_IMAGE
    else:
        raise ImageInputError(
            f"kernel {path}: neither an ELF kernel (vmlinux) nor a bzImage{_compressed(head)}"
        )
    if found != architecture:
        raise ImageInputError(
            f"kernel {path}: it is for {found}, and the image is to be for {architecture}"
        )
    return kind


def check_initrd(path: Path) -> None:
    """Make sure that there is an initial RAM disk. Any content will do: kernels differ in it.

    Raises:
        ImageInputError: It is empty or cannot be read.
    """
    _head("initrd", path)


def check_rootfs(path: Path) -> None:
    """Make sure that a file can be a raw disk with a root file system.

    Raises:
        ImageInputError: It is something else, too large, empty or cannot be read; says what to do.
    """
    head = _head("rootfs", path)
    for magic, name in _DISK_FORMATS.items():
        if head.startswith(magic):
            raise ImageInputError(
                f"rootfs {path}: a {name} disk, and raw ones are taken only: "
                f"qemu-img convert -f {name} -O raw {path.name} rootfs.img"
            )
    if head[257:262] == b"ustar":
        raise ImageInputError(
            f"rootfs {path}: a tar archive, and no file system: unpack it to a directory DIR, "
            "then mkfs.ext4 -d DIR rootfs.img SIZE"
        )
    if hint := _compressed(head):
        raise ImageInputError(f"rootfs {path}: no raw disk{hint}")
    if path.stat().st_size > MAX_ROOTFS_BYTES:
        raise ImageInputError(f"rootfs {path}: larger than any disk that a VM can have (1 TiB)")


def _head(part: str, path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ImageInputError(f"{part} {path}: not a regular file")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ImageInputError(f"{part} {path}: {error.strerror}") from error
    if not head:
        raise ImageInputError(f"{part} {path}: the file is empty")
    return head


def _compressed(head: bytes) -> str:
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"; it is compressed with {name}: unpack it first"
    return ""


def _number(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 2], "little")
