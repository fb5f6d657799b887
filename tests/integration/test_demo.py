"""The demo: conserved to the unit on whatever hypervisor works here, and interruptible."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from decisec.dev.leftovers import marked_processes, network_namespaces
from decisec.dev.state import StateDir
from tests.support.dev_stack import program
from vm_agent.store import RecordStore

KEYS = {
    "driver", "vms", "ticks_expected", "ticks_stored", "rejected", "seq_missing", "conserved",
    "jitter_ms", "lag_ms", "usage",
}  # fmt: skip


def test_it_bills_what_was_counted_and_says_so(tmp_path: Path) -> None:
    """Five VMs, no sequence number missing, nothing rejected, conserved; exit code by verdict."""
    state_dir = tmp_path / ".decisec" / "demo"
    with program("demo", "--seconds", "3", "--json", cwd=tmp_path, state_dir=state_dir) as demo:
        code = demo.wait(100)
    written = json.loads((tmp_path / ".decisec" / "demo-report.json").read_text())
    assert json.loads(demo.stdout) == written
    assert written.keys() >= KEYS
    assert set(written["jitter_ms"]) == {"p50", "p99", "max"}
    assert set(written["lag_ms"]) == {"p50", "p99"}
    assert (written["vms"], written["rejected"], written["seq_missing"]) == (5, 0, 0)
    assert written["conserved"] is True
    assert written["nothing_left_running"] is True
    # A machine that is too busy to sample in time may miss ticks; the verdict must say so.
    assert code == (1 if written["problems"] else 0), demo.lines
    assert written["ticks_stored"] + written["ticks_missed"] * 5 >= written["ticks_expected"]
    assert not marked_processes(str(state_dir))


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """Interrupted while five VMs run, it ends them all and exits 130."""
    state_dir = tmp_path / ".decisec" / "demo"
    with program(
        "demo", "--driver", "simulator", "--json", cwd=tmp_path, state_dir=state_dir
    ) as demo:
        demo.until("created and booted")
        records = RecordStore(StateDir(state_dir).agent / "vms").load()
        vms = {record.vm_id.hex for record in records}
        networks = vms & _with_networks()
        demo.signal(signal.SIGINT)
        assert demo.wait() == 130
    assert not marked_processes(str(state_dir))
    assert len(vms) == 5
    assert len(networks) == (5 if os.geteuid() == 0 else 0)
    assert not vms & _with_networks()
    assert demo.stdout == ""
    assert any(line.startswith("nothing left running") for line in demo.lines)


def _with_networks() -> set[str]:
    """VMs that hold a network namespace, those of other stacks on this machine as well."""
    return {name.split("-")[1] for name in network_namespaces()}
