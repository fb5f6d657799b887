"""What documents show, done on a running stack: docs/cli.md, docs/sdk.md, docstrings, and Tab."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from decisec.cli.exits import Exit
from decisec.dev.endpoint import Endpoint, read_endpoint
from decisec.dev.state import StateDir
from decisec.dev.tokens import development_token
from decisec.sdk import Client
from schemas.api import CreateVmRequest
from schemas.vms import VmState
from tests.support.dev_stack import simulated_stack
from tests.support.doc_examples import run_docstrings, run_python
from tests.support.shell import Shell
from tests.support.shell_examples import run_shell, write_files

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where a stack of simulated VMs runs on `.decisec`."""
    with simulated_stack(tmp_path_factory.mktemp("examples")) as folder:
        yield folder


@pytest.fixture
def endpoint(stack: Path) -> Endpoint:
    found = read_endpoint(stack / ".decisec")
    assert found is not None
    return found


@pytest.fixture
def customer(
    request: pytest.FixtureRequest,
    stack: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """A customer of the test's own, whom clients stand for by their environment."""
    name = request.node.name.replace("_", "-")[:60].rstrip("-")
    token = development_token(StateDir(stack / ".decisec").key(), name)
    monkeypatch.setenv("DECISEC_API_URL", endpoint.api_url)
    monkeypatch.setenv("DECISEC_TOKEN", token)
    return token


def test_the_command_lines_page_is_true(
    stack: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command prints what is shown, and ends with the code that is shown."""
    page = ROOT / "docs" / "cli.md"
    write_files(page, stack)
    number, wrong = run_shell(page, Shell(stack, capfd, monkeypatch))
    assert wrong == ""
    assert number >= 18


@pytest.mark.usefixtures("customer")
def test_the_sdks_page_is_true() -> None:
    """From a client to asyncio, as one session."""
    number, wrong = run_python(ROOT / "docs" / "sdk.md")
    assert wrong == ""
    assert number >= 50


@pytest.mark.usefixtures("customer")
def test_the_sdks_docstrings_are_true() -> None:
    """With a client and a VM that runs, which they begin with."""
    with Client() as client:
        request = CreateVmRequest(image="tiny", name="web", labels={"team": "web"}, boot=True)
        vm_id = client.create_vm(request, wait_s=30).vm.vm_id
        give_up_s = time.monotonic() + 30
        while not client.usage(vm_ids=[vm_id]).vms:
            assert time.monotonic() < give_up_s, "no sample of the VM within 30 s"
            time.sleep(0.1)
        names = {"client": client, "vm_id": vm_id}
        numbers = {}
        for module in ("synchronous", "asynchronous", "figures", "network"):
            found = importlib.import_module(f"decisec.sdk.{module}")
            numbers[module], wrong = run_docstrings(found, names)
            assert wrong == ""
        assert min(numbers.values()) >= 2
        assert client.get_vm(vm_id).state is VmState.RUNNING


def test_top_needs_no_bus(
    stack: Path,
    endpoint: Endpoint,
    customer: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has the API only sees rates all the same; a token that is none ends it."""
    with Client() as client:
        request = CreateVmRequest(image="tiny", name="busy", boot=True)
        vm_id = client.create_vm(request, wait_s=30).vm.vm_id
    shell = Shell(stack, capfd, monkeypatch)
    place = ("--api-url", endpoint.api_url)
    assert shell("context", "add", "api", *place, "--token", customer).code == 0
    assert shell("context", "add", "none", *place, "--token", "x").code == 0
    found = shell("top", "--json", "--context", "api").json
    (rates,) = found["vms"]
    assert (rates["vm_id"], rates["state"], rates["simulated"]) == (str(vm_id), "running", True)
    assert rates["samples_per_s"] >= 5
    assert found["lag_ms"] is None
    assert "busy" in shell("top", "--context", "api").out
    assert shell("top", "--context", "none").code == Exit.DENIED


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_bash_completes_names_of_vms(tmp_path: Path, stack: Path, customer: str) -> None:
    """By the script that it is given, as a user's shell does."""
    assert BASH is not None
    with Client() as client:
        client.create_vm(CreateVmRequest(image="tiny", name="web"))
        client.create_vm(CreateVmRequest(image="tiny", name="worker"))
    program = tmp_path / "decisec"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m decisec "$@"\n')
    program.chmod(0o700)
    script = """
        source <(decisec completion bash)
        tab() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            _decisec_completion decisec
            echo "${COMPREPLY[*]}"
        }
        tab decisec vm boot w
        complete -p decisec
    """
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [BASH, "--norc", "--noprofile", "-c", script],
        cwd=stack, env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "worker web\ncomplete -o default -F _decisec_completion decisec\n"
