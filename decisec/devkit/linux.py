"""`python -m decisec.devkit.linux --store DIR`: a stock Linux as image `linux`, for QEMU hosts.

Debian's kernel for cloud machines, and an initial RAM disk of busybox with the modules that a
microvm needs. Both come through apt, which checks signatures, and are unpacked only: nothing is
installed, and nobody need be root. The guest does what `linux_init.sh` says.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from decisec.devkit import initramfs
from decisec.devkit.uv import DevkitError, run
from vm_agent.images import Image, ImageError, ImageStore

IMAGE = "linux"
ALLOWED_ARGS = ("blkr", "blkw", "net", "ping", "ping4", "tx")
DRIVER_ARGS = {
    # A panic ends the VMM by a triple fault. Under TCG the kernel cannot find out the clock rate
    # of a microvm by itself and stands still. Messages would tear the guest's own lines apart.
    "qemu": "console=ttyS0 reboot=t panic=-1 tsc_early_khz=2500000 loglevel=1",
}
KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "button", "evdev")

_INIT = Path(__file__).with_name("linux_init.sh")
_REAL_KERNEL = re.compile(r"^Depends:.*?\b(linux-image-[0-9][^ ,]*)", re.MULTILINE)
_APT_OPTIONS = ("-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10")
_UPDATE_S = 60
_DOWNLOAD_S = 60
_ASK_S = 10


def build(directory: Path) -> bool:
    """Put `kernel` and `initrd` into a directory; nothing if they are there and made alike.

    A kernel that is there stays: remove the directory to get the newest.

    Returns:
        Whether they had to be made.

    Raises:
        DevkitError: There is no apt, no such package for it, or no way to get it.
    """
    kernel, initrd, stamp = (directory / name for name in ("kernel", "initrd", "digest"))
    init = _INIT.read_bytes()
    wanted = hashlib.sha256(repr((MODULES, KERNEL_PACKAGE)).encode() + init).hexdigest()
    if kernel.is_file() and initrd.is_file() and stamp.is_file() and stamp.read_text() == wanted:
        return False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".linux-", dir=directory) as temporary:
            work = Path(temporary)
            root = _unpack(_fetch(work), work / "root")
            modules = initramfs.with_dependencies(root, MODULES)
            busybox = _only(root, "bin/busybox").read_bytes()
            made = work / "initrd"
            made.write_bytes(initramfs.archive(init, busybox, modules))
            # Whatever ends this half way, the stamp does not vouch for it.
            stamp.unlink(missing_ok=True)
            _only(root, "boot/vmlinuz-*").replace(kernel)
            made.replace(initrd)
            stamp.write_text(wanted)
    except OSError as error:
        raise DevkitError(f"cannot write to {directory}: {error}") from error
    return True


def add_to(store: ImageStore, directory: Path) -> Image:
    """Import what `build` has made as image `linux`.

    Raises:
        ImageError: It cannot be added.
    """
    return store.add(
        IMAGE,
        directory / "kernel",
        initrd_path=directory / "initrd",
        allowed_args=ALLOWED_ARGS,
        driver_args=DRIVER_ARGS,
    )


def _fetch(work: Path) -> list[Path]:
    """Both packages, downloaded into a directory."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DevkitError(f"there is no {tool} here, so no Debian package can be fetched")
    try:
        return _download(work, ())
    except DevkitError:
        # The machine's package lists are missing or too old. Lists of one's own need no root.
        state = work / "apt"
        (state / "lists" / "partial").mkdir(parents=True)
        (state / "cache").mkdir()
        own = (
            *("-o", f"Dir::State::lists={state / 'lists'}"),
            *("-o", f"Dir::Cache={state / 'cache'}"),
        )
        update = ["apt-get", *_APT_OPTIONS, *own, "-o", "APT::Update::Error-Mode=any", "update"]
        run(update, what="updating package lists", limit_s=_UPDATE_S)
        return _download(work, own)


def _download(work: Path, options: Sequence[str]) -> list[Path]:
    kernel = _real_kernel(options)
    run(
        ["apt-get", *_APT_OPTIONS, *options, "download", kernel, BUSYBOX_PACKAGE],
        what=f"fetching {kernel} and {BUSYBOX_PACKAGE}",
        cwd=work,
        limit_s=_DOWNLOAD_S,
    )
    return sorted(work.glob("*.deb"))


def _real_kernel(options: Sequence[str]) -> str:
    """The package with the kernel itself, which the metapackage depends on."""
    show = ["apt-cache", *options, "show", "--no-all-versions", KERNEL_PACKAGE]
    found = _REAL_KERNEL.search(run(show, what=f"looking {KERNEL_PACKAGE} up", limit_s=_ASK_S))
    if found is None:
        raise DevkitError(f"{KERNEL_PACKAGE} depends on no kernel")
    return found[1]


def _unpack(packages: Sequence[Path], root: Path) -> Path:
    for package in packages:
        run(["dpkg-deb", "-x", str(package), str(root)], what=f"unpacking {package.name}")
    return root


def _only(root: Path, pattern: str) -> Path:
    found = sorted([*root.glob(pattern), *root.glob(f"usr/{pattern}")])
    if len(found) != 1:
        raise DevkitError(f"the packages hold {len(found)} files like {pattern}")
    return found[0]


def main() -> int:
    """The command. Exits 1 with a one-line reason."""
    parser = argparse.ArgumentParser(prog="decisec.devkit.linux", description=__doc__)
    parser.add_argument("--store", required=True, type=Path, metavar="DIR", help="image store")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where the parts stay; default: beside the store"
    )
    options = parser.parse_args()
    store: Path = options.store
    cache: Path = options.cache or store.with_name("linux")
    try:
        build(cache)
        image = add_to(ImageStore(store), cache)
    except (DevkitError, ImageError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"image {image.name} is in {store}, for hosts with the driver qemu\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
