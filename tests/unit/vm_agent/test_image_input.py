"""A file that cannot be what it is given as is told before it is imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from decisec.devkit import guest
from decisec.devkit.uv import DevkitError
from vm_agent.image_input import KernelFormat, check_initrd, check_kernel, check_rootfs
from vm_agent.image_manifest import ImageInputError


def elf(*, machine: int = 62, kind: int = 2, bits: int = 2) -> bytes:
    """The beginning of an ELF file."""
    head = bytearray(64)
    head[:4] = b"\x7fELF"
    head[4] = bits
    head[16:18] = kind.to_bytes(2, "little")
    head[18:20] = machine.to_bytes(2, "little")
    return bytes(head)


def bzimage(*, flags: int = 1) -> bytes:
    """The beginning of a bzImage."""
    head = bytearray(1024)
    head[0x202:0x206] = b"HdrS"
    head[0x236] = flags
    return bytes(head)


def tar() -> bytes:
    """The beginning of a tar archive."""
    return bytes(257) + b"ustar\x0000" + bytes(248)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test puts what it checks."""
    return tmp_path / "file"


@pytest.mark.parametrize(
    ("content", "architecture", "found"),
    [
        (elf(), "x86_64", KernelFormat.ELF),
        (elf(kind=3), "x86_64", KernelFormat.ELF),
        (elf(machine=183), "aarch64", KernelFormat.ELF),
        (bzimage(), "x86_64", KernelFormat.BZIMAGE),
        (bytes(56) + b"ARM\x64" + bytes(99), "aarch64", KernelFormat.ARM64_IMAGE),
    ],
)
def test_kernels_are_known(
    file: Path, content: bytes, architecture: str, found: KernelFormat
) -> None:
    """By format, for their architecture and for no other one."""
    file.write_bytes(content)
    assert check_kernel(file, architecture) is found
    with pytest.raises(ImageInputError, match=f"it is for {architecture}.* for pdp11"):
        check_kernel(file, "pdp11")


def test_the_tiny_guest_is_a_kernel(file: Path) -> None:
    """As built from its sources."""
    try:
        guest.build(file)
    except DevkitError as error:
        pytest.skip(f"the tiny guest cannot be built: {error}")
    assert check_kernel(file, "x86_64") is KernelFormat.ELF


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\n", "neither"),
        (elf(bits=1), "no 64-bit kernel"),
        (elf(kind=1), "no 64-bit kernel"),
        (elf()[:40], "no 64-bit kernel"),
        (elf(machine=8), "for another architecture"),
        (bzimage(flags=0), "for i686"),
        (b"\x1f\x8b\x08 vmlinux.gz", "gzip: unpack it"),
        (b"\x28\xb5\x2f\xfd vmlinux.zst", "zstd: unpack it"),
    ],
)
def test_what_is_no_kernel_is_refused(file: Path, content: bytes, words: str) -> None:
    """The file is named, and what it is."""
    file.write_bytes(content)
    with pytest.raises(ImageInputError, match=words) as refused:
        check_kernel(file, "x86_64")
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"QFI\xfb\0\0\0\3", "qemu-img convert -f qcow2 -O raw"),
        (b"KDMV", "-f vmdk"),
        (tar(), "mkfs.ext4 -d"),
        (b"\xfd7zXZ\0", "xz: unpack it"),
    ],
)
def test_what_is_no_raw_disk_is_refused(file: Path, content: bytes, words: str) -> None:
    """It says how to make one of it."""
    file.write_bytes(content)
    with pytest.raises(ImageInputError, match=words):
        check_rootfs(file)


def test_any_other_content_can_be_a_disk(file: Path) -> None:
    """Up to the largest disk that a VM can have."""
    file.write_bytes(bytes(512))
    check_rootfs(file)
    os.truncate(file, 2**40)
    check_rootfs(file)
    os.truncate(file, 2**40 + 1)
    with pytest.raises(ImageInputError, match="1 TiB"):
        check_rootfs(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "nothing", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
    ):
        for check in (lambda p: check_kernel(p, "x86_64"), check_initrd, check_rootfs):
            with pytest.raises(ImageInputError, match=words):
                check(path)
