"""The Linux image: modules in an order that loads, the same bytes each time, a reason if none."""

from __future__ import annotations

import lzma
import re
import subprocess
from pathlib import Path

import pytest

from decisec.devkit import initramfs, linux
from decisec.devkit.uv import DevkitError
from vm_agent.images import ImageStore, render_kernel_args


def module(*needs: str) -> bytes:
    """As much of a kernel module as matters here."""
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An unpacked kernel package."""
    root = tmp_path / "root"
    folder = root / "usr" / "lib" / "modules" / "6.1.0" / "kernel"
    (folder / "net").mkdir(parents=True)
    (folder / "virtio_ring.ko").write_bytes(module())
    (folder / "virtio.ko").write_bytes(module("virtio_ring"))
    (folder / "net" / "net-failover.ko.xz").write_bytes(lzma.compress(module("failover")))
    (folder / "net" / "failover.ko.xz").write_bytes(lzma.compress(module()))
    (folder / "net" / "virtio_net.ko").write_bytes(module("virtio_ring", "virtio", "net_failover"))
    (folder.parent / "modules.builtin").write_text("kernel/drivers/acpi/button.ko\n")
    return root


def test_what_a_module_needs_is_loaded_before_it(package: Path) -> None:
    """Compressed ones and dashes in names are as good; what is built in is not looked for."""
    found = initramfs.with_dependencies(package, ("virtio_net", "button", "virtio"))
    names = [name for name, _ in found]
    assert names == ["virtio_ring", "virtio", "failover", "net_failover", "virtio_net"]
    assert dict(found)["failover"] == module()


def test_a_module_that_is_missing_is_named(package: Path) -> None:
    """Better now than in the guest."""
    with pytest.raises(DevkitError, match="no module virtio_blk"):
        initramfs.with_dependencies(package, ("virtio_blk",))


def test_an_archive_is_what_the_format_says() -> None:
    """Every entry has its length, starts at a multiple of four, and can be found again."""
    content = initramfs.archive(b"#!init", b"busy", [("one", b"1"), ("two", b"22")])
    assert content == initramfs.archive(b"#!init", b"busy", [("one", b"1"), ("two", b"22")])
    found = entries(content)
    assert found.pop("TRAILER!!!") == (0, b"")
    assert list(found) == [
        "bin", "bin/busybox", "lib", "lib/modules", "lib/modules/00-one.ko",
        "lib/modules/01-two.ko", "init",
    ]  # fmt: skip
    assert found["init"] == (0o100755, b"#!init")
    assert found["bin"] == (0o040755, b"")
    assert found["lib/modules/01-two.ko"] == (0o100644, b"22")


def entries(content: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name, read as the kernel does."""
    found = {}
    at = 0
    while at < len(content):
        assert content[at : at + 6] == b"070701"
        fields = [int(content[i : i + 8], 16) for i in range(at + 6, at + 110, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = content[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at = -(-(at + 110 + name_size) // 4) * 4
        found[name[:-1].decode()] = (mode, content[at : at + size])
        at = -(-(at + size) // 4) * 4
    return found


def test_without_apt_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is left."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DevkitError, match="no apt-get here"):
        linux.build(tmp_path / "parts")
    assert list((tmp_path / "parts").iterdir()) == []


def test_what_is_there_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apt stands in as scripts, so that the packages are ours; the image has both files."""
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "log"
    unpack = f"""
        mkdir -p "$3/boot" "$3/bin" "$3/lib/modules/6.1.0/kernel"
        case "$2" in *busybox*) echo busy > "$3/bin/busybox" ;;
        *) echo bzImage > "$3/boot/vmlinuz-6.1.0"
           printf '%s\\n' {" ".join(f"{name}.ko" for name in linux.MODULES)} \\
             > "$3/lib/modules/6.1.0/modules.builtin" ;;
        esac"""
    for name, script in (
        ("apt-cache", "echo 'Depends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.9-1)'"),
        ("apt-get", "touch kernel.deb busybox.deb"),
        ("dpkg-deb", unpack),
    ):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{script}\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    parts = tmp_path / "parts"
    assert linux.build(parts)
    assert "linux-image-6.1.0-9-cloud-amd64 busybox-static" in log.read_text()
    calls = log.read_text()
    assert not linux.build(parts)
    assert log.read_text() == calls
    assert sorted(path.name for path in parts.iterdir()) == ["digest", "initrd", "kernel"]
    image = linux.add_to(ImageStore(tmp_path / "images"), parts)
    assert image.kernel.read_text() == "bzImage\n"
    assert image.initrd is not None
    assert entries(image.initrd.read_bytes())["bin/busybox"] == (0o100755, b"busy\n")
    words = render_kernel_args(image, "qemu", {"blkw": "64"}).split()
    assert {"console=ttyS0", "blkw=64"} <= set(words)
    (parts / "digest").write_text("of another recipe")
    assert linux.build(parts)


def test_the_guest_s_program_is_a_shell_script() -> None:
    """A shell can read it, and what it calls a boot argument is one that a spec may set."""
    script = Path(linux.__file__).with_name("linux_init.sh")
    subprocess.run(["/bin/sh", "-n", str(script)], check=True)
    assert set(re.findall(r"\$\{(\w+):-0?\}", script.read_text())) == set(linux.ALLOWED_ARGS)
