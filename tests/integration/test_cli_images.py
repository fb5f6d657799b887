"""`decisec image` on a host of its own: no stack, no agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from decisec.cli.exits import Exit
from runtime.clock import utc_now
from schemas.ids import new_id
from schemas.units import MIB
from schemas.vms import VmSpec, VmState
from tests.support.shell import Done, Shell
from vm_agent.images import ImageStore
from vm_agent.store import Record, RecordStore

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(200)
"""The head of an x86-64 kernel."""

WITHOUT_THE_AGENT_EXTRA = """
import sys
sys.modules["pyroute2"] = sys.modules["qemu"] = None
from decisec.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Desk:
    """An operator's directory, with files to import and a shell; `host` is the agent's data."""

    def __init__(self, folder: Path, shell: Shell) -> None:
        self.folder = folder
        self.host = folder / "agent"
        self.shell = shell
        self.kernel = folder / "vmlinux"
        self.kernel.write_bytes(ELF)
        self.rootfs = folder / "rootfs.img"
        self.rootfs.write_bytes(os.urandom(MIB))

    def __call__(self, *arguments: str, **env: str) -> Done:
        """`decisec image …`."""
        return self.shell("image", *arguments, **{"DECISEC_AGENT_DATA_DIR": str(self.host), **env})

    def add(self, name: str, *arguments: str) -> Done:
        done = self("import", name, "--kernel", "vmlinux", *arguments)
        assert done.code == 0, done
        return done

    def images(self) -> dict[str, Any]:
        """What is there, by name."""
        return {image["name"]: image for image in self("ls", "--json").json["images"]}

    def vm(self, image: str, state: VmState = VmState.STOPPED) -> Record:
        """A VM that the agent of this host keeps."""
        record = Record(
            vm_id=new_id(), customer_id="acme", spec=VmSpec(image=image), state=state,
            created_at=utc_now(),
        )  # fmt: skip
        RecordStore(self.host / "vms").put(record)
        return record

    def damage(self, name: str, part: str) -> None:
        path = self.host / "images" / name / part
        path.chmod(0o644)
        path.write_bytes(b"damaged")


@pytest.fixture
def desk(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Desk:
    """An operator on a host without images."""
    return Desk(tmp_path, Shell(tmp_path, capfd, monkeypatch))


def test_an_image_is_imported_listed_and_removed(desk: Desk) -> None:
    """Every part of it is stored, and told of."""
    (desk.folder / "initrd").write_bytes(b"cpio")
    done = desk.add(
        "web", "--rootfs", "rootfs.img", "--initrd", "initrd", "--description", "Web server",
        "--arg", "quiet", "--arg", "loop", "--default-args", "console=ttyS0 root=/dev/vda",
        "--default-args-for", "qemu=console=ttyS0 acpi=on",
    )  # fmt: skip
    assert done.out == "image web imported: kernel 220 B, initrd 4 B, rootfs 1.0 MiB\n"
    assert done.err == ""
    web = desk.images()["web"]
    assert web["files"]["rootfs"] == {
        "bytes": MIB, "sha256": sha256(desk.rootfs.read_bytes()).hexdigest(),
    }  # fmt: skip
    assert set(web["files"]) == {"kernel", "initrd", "rootfs"}
    assert web["allowed_args"] == ["loop", "quiet"]
    assert web["driver_args"] == {
        "*": "console=ttyS0 root=/dev/vda", "qemu": "console=ttyS0 acpi=on",
    }  # fmt: skip
    assert (web["architecture"], web["description"]) == ("x86_64", "Web server")
    assert (web["vms"], web["problem"]) == ([], "")
    listed = desk("ls").out
    assert "Web server" in listed
    assert "1.0 MiB" in listed
    image = ImageStore(desk.host / "images").open("web")
    assert image.rootfs is not None
    assert image.rootfs.read_bytes() == desk.rootfs.read_bytes()
    assert desk.host.stat().st_mode & 0o777 == 0o700
    assert desk("rm", "web").out == "image web removed\n"
    assert desk.images() == {}


def test_an_image_is_replaced_only_on_demand(desk: Desk) -> None:
    """With a word on how."""
    desk.add("web")
    refused = desk("import", "web", "--kernel", "vmlinux", "--json")
    assert (refused.code, refused.problem["code"]) == (Exit.FAILED, "image_exists")
    assert "--replace" in refused.problem["detail"]
    desk.kernel.write_bytes(ELF + b"more")
    desk.add("web", "--replace")
    assert desk.images()["web"]["files"]["kernel"]["bytes"] == len(ELF) + 4


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["Web", "--kernel", "vmlinux"], "'Web'"),
        (["../web", "--kernel", "vmlinux"], "'../web'"),
        (["web"], "--kernel"),
        (["web", "--kernel", "nothing"], "nothing: No such file"),
        (["web", "--kernel", "rootfs.img"], "neither an ELF kernel"),
        (["web", "--kernel", "."], "not a regular file"),
        (["web", "--kernel", "vmlinux", "--rootfs", "nothing"], "nothing: No such file"),
        (["web", "--kernel", "vmlinux", "--rootfs", "empty"], "empty: the file is empty"),
        (["web", "--kernel", "vmlinux", "--initrd", "empty"], "empty: the file is empty"),
        (["web", "--kernel", "vmlinux", "--arch", "aarch64"], "it is for x86_64"),
        (["web", "--kernel", "arm", "--arch", "aarch64"], "this host is x86_64"),
        (["web", "--kernel", "arm"], "it is for aarch64"),
        (["web", "--kernel", "vmlinux", "--arg", "Init"], "'Init'"),
        (["web", "--kernel", "vmlinux", "--arg", "root=x"], "'root=x'"),
        (["web", "--kernel", "vmlinux", "--default-args", "a\nb"], "printable"),
        (["web", "--kernel", "vmlinux", "--default-args-for", "qemu"], "DRIVER=ARGS"),
        (["web", "--kernel", "vmlinux", "--default-args-for", "xen=a"], "firecracker"),
        (["web", "--kernel", "vmlinux", "--description", "x" * 300], "256"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_bad_input_is_told_and_nothing_is_written(
    desk: Desk, arguments: list[str], word: str
) -> None:
    """A sentence or a problem that names the cause; exit code 2."""
    (desk.folder / "empty").touch()
    (desk.folder / "arm").write_bytes(ELF[:18] + b"\xb7\x00" + ELF[20:])
    plain = desk("import", *arguments)
    assert (plain.code, plain.out) == (Exit.USAGE, "")
    assert word in plain.err
    assert word in desk("import", *arguments, "--json").problem["detail"]
    assert not list(desk.host.glob("images/*"))


def test_an_image_in_use_stays(desk: Desk) -> None:
    """Of all that are named none is removed; a deleted VM, or --force, does not mind."""
    for name in ("web", "db", "old"):
        desk.add(name)
    vm = desk.vm("web")
    desk.vm("old", VmState.DELETED)
    assert desk.images()["web"]["vms"] == [str(vm.vm_id)]
    refused = desk("rm", "db", "web", "--json")
    assert (refused.code, refused.problem["code"]) == (Exit.FAILED, "image_in_use")
    assert str(vm.vm_id) in refused.problem["detail"]
    assert set(desk.images()) == {"db", "old", "web"}
    assert desk("rm", "db", "old", "--json").json == {"removed": ["db", "old"]}
    assert desk("rm", "web", "--force").code == 0
    assert desk.images() == {}
    assert desk("rm", "web").code == Exit.NOT_FOUND


def test_the_image_that_the_agent_starts_with_stays(desk: Desk) -> None:
    """Whichever its settings name."""
    desk.add("tiny")
    desk.add("probe")
    assert "probe_image" in desk("rm", "tiny").err
    other = {"DECISEC_AGENT_PROBE_IMAGE": "probe"}
    assert "probe_image" in desk("rm", "probe", **other).err
    assert desk("rm", "tiny", **other).code == 0


def test_a_record_that_cannot_be_read_keeps_all_images(desk: Desk) -> None:
    """It could be of any; looking is possible all the same."""
    desk.add("web")
    RecordStore(desk.host / "vms")
    (desk.host / "vms" / "x.json").write_text("{}")
    assert "x.json" in desk("rm", "web").err
    assert set(desk.images()) == {"web"}
    assert desk("rm", "web", "--force").code == 0


def test_verify_names_what_is_damaged(desk: Desk) -> None:
    """Exit code 1 for damage of any kind; leftovers of killed imports go."""
    for name in ("a", "b", "c", "d"):
        desk.add(name, "--rootfs", "rootfs.img")
    assert desk("verify").out == "4 of 4 images are as they were imported\n"
    left = desk.host / "images" / ".new-left"
    left.mkdir()
    desk.damage("b", "rootfs")
    desk.damage("c", "image.json")
    (desk.host / "images" / "d" / "image.json").unlink()
    found = desk("verify", "--json")
    assert found.code == 1
    document = json.loads(found.out)
    assert document["damaged"] == ["b", "c", "d"]
    assert document["leftovers_removed"] == 1
    problems = {image["name"]: image["problem"] for image in document["images"]}
    assert problems["a"] == ""
    assert "rootfs" in problems["b"]
    assert "image.json" in problems["c"]
    assert not left.exists()
    plain = desk("verify", "a", "b")
    assert (plain.code, plain.out.count("damaged")) == (1, 1)
    assert desk("verify", "a").code == 0
    assert desk("verify", "nothing").code == Exit.NOT_FOUND
    assert desk.images()["c"]["problem"] == problems["c"]
    assert "damaged" in desk("ls").out
    assert desk("rm", "c", "d").code == 0


def test_the_store_is_where_the_agent_has_it(desk: Desk) -> None:
    """Options before variables before the file that DECISEC_CONFIG names."""
    one, two, three = (str(desk.folder / name) for name in ("one", "two", "three"))
    config = desk.folder / "decisec.toml"
    config.write_text(f'[agent]\nhost_id = "h1"\ndata_dir = "{one}"\nimage_dir = "{two}"\n')

    def directory(*arguments: str, **env: str) -> str:
        found: str = desk.shell("image", "ls", "--json", *arguments, **env).json["image_dir"]
        return found

    assert directory() == "/var/lib/decisec/agent/images"
    assert directory("--data-dir", one) == f"{one}/images"
    assert directory(DECISEC_AGENT_DATA_DIR=one) == f"{one}/images"
    assert directory(DECISEC_CONFIG=str(config)) == two
    assert directory(DECISEC_CONFIG=str(config), DECISEC_AGENT_IMAGE_DIR=three) == three
    assert directory("--image-dir", one, DECISEC_AGENT_IMAGE_DIR=three) == one
    wrong = desk.shell("image", "ls", DECISEC_AGENT_SLOTS="many")
    assert (wrong.code, "DECISEC_AGENT_SLOTS" in wrong.err) == (Exit.FAILED, True)


def test_nothing_of_the_agent_extra_is_needed(desk: Desk) -> None:
    """Neither its libraries nor a hypervisor: an operator's tool works on any Linux host."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_AGENT_EXTRA, "image", "import", "web",
         "--kernel", str(desk.kernel), "--default-args-for", "qemu=a",
         "--data-dir", str(desk.host), "--json"],
        cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"]["name"] == "web"
    assert set(desk.images()) == {"web"}


@pytest.mark.parametrize("arguments", [[], ["import"], ["ls"], ["rm"], ["verify"]], ids=" ".join)
def test_every_command_explains_itself(desk: Desk, arguments: list[str]) -> None:
    """Help names the options and the exit codes."""
    done = desk(*arguments, "--help")
    assert done.code == 0
    assert "Exit codes" in done.out
