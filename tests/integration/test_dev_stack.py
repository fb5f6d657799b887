"""The embedded stack as a user runs it: it comes up whole, and never leaves anything behind."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from decisec.dev.leftovers import marked_processes, network_namespaces
from decisec.dev.state import StateDir
from decisec.sdk import Client
from schemas.api import CreateVmRequest
from schemas.vms import VmState
from tests.support.dev_stack import gone_within, program


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory of its own."""
    return tmp_path / "state"


def _arguments(state_dir: Path) -> tuple[str, ...]:
    return ("dev", "--state-dir", str(state_dir), "--driver", "simulator")


def _nothing_left(state_dir: Path) -> bool:
    return not marked_processes(str(state_dir)) and not StateDir(state_dir).running


def test_it_comes_up_refuses_a_second_one_and_stops_whole(tmp_path: Path, state_dir: Path) -> None:
    """One stack per state directory; Ctrl-C ends it in order, with a running VM as well."""
    with program(*_arguments(state_dir), cwd=tmp_path, state_dir=state_dir) as stack:
        endpoint = stack.endpoint(state_dir)
        assert endpoint.pid == stack.pid
        for secret in ("dev.json", "dev.key"):
            assert stat.S_IMODE((state_dir / secret).stat().st_mode) == 0o600

        with program(*_arguments(state_dir), cwd=tmp_path, state_dir=tmp_path / "no") as second:
            assert second.wait() == 1
        assert f"another stack (process {stack.pid})" in second.lines[-1]

        with Client(endpoint.api_url, endpoint.token) as client:
            made = client.create_vm(CreateVmRequest(image="tiny", boot=True), wait_s=30)
        assert made.vm.vm_id.hex in str(sorted(network_namespaces())) or os.geteuid() != 0
        stack.signal(signal.SIGINT)
        assert stack.wait() == 0
    assert "shutting down 1 VMs" in stack.lines
    assert stack.lines[-1].startswith("nothing left running")
    assert _nothing_left(state_dir)
    assert made.vm.vm_id.hex not in str(sorted(network_namespaces()))
    assert not (state_dir / "dev.json").exists()


@pytest.mark.parametrize("moment", ["nats-server ready", "image tiny imported", "collector ready"])
def test_ctrl_c_while_it_starts_leaves_nothing(
    tmp_path: Path, state_dir: Path, moment: str
) -> None:
    """Interrupted half-way up, it takes down what stands."""
    with program(*_arguments(state_dir), cwd=tmp_path, state_dir=state_dir) as stack:
        stack.until(moment)
        stack.signal(signal.SIGINT)
        assert stack.wait() == 130
    assert _nothing_left(state_dir)


@pytest.mark.chaos
def test_a_killed_supervisor_takes_its_services_along_and_a_dead_child_ends_the_stack(
    tmp_path: Path, state_dir: Path
) -> None:
    """After SIGKILL the next start ends the VMs that were left; a child's death is reported."""
    with program(*_arguments(state_dir), cwd=tmp_path, state_dir=state_dir) as stack:
        endpoint = stack.endpoint(state_dir)
        with Client(endpoint.api_url, endpoint.token) as client:
            made = client.create_vm(CreateVmRequest(image="tiny", boot=True), wait_s=30)
        stack.signal(signal.SIGKILL)
        stack.wait()
        assert gone_within(state_dir, 20, but="vm_agent/simulator")

        with program(*_arguments(state_dir), cwd=tmp_path, state_dir=state_dir) as next_stack:
            endpoint = next_stack.endpoint(state_dir)
            assert any("former stack was killed" in line for line in next_stack.lines)
            with Client(endpoint.api_url, endpoint.token) as client:
                assert client.get_vm(made.vm.vm_id).state is VmState.STOPPED
            collector = next(
                process.pid
                for process in marked_processes(str(state_dir))
                if process.command.endswith("-m collector")
            )
            os.kill(collector, signal.SIGKILL)
            assert next_stack.wait() == 1
        assert "collector died (killed by signal 9)" in next_stack.lines[-1]
        assert any(line.startswith("  collector | {") for line in next_stack.lines)
    assert _nothing_left(state_dir)
