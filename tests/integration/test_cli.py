"""The command line against a running stack: results on stdout, errors as sentences and codes."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from decisec.cli.exits import Exit
from tests.support.dev_stack import simulated_stack
from tests.support.shell import Shell

METERS = ("uptime_ms", "cpu_ns", "mem_kib_ms")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where a stack of simulated VMs runs on `.decisec`: commands look there."""
    with simulated_stack(tmp_path_factory.mktemp("cli")) as folder:
        yield folder


@pytest.fixture
def shell(stack: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell beside the stack."""
    return Shell(stack, capfd, monkeypatch)


@pytest.fixture
def vm(shell: Shell) -> Iterator[str]:
    """A running VM named `web`, deleted afterwards."""
    made = shell("vm", "create", "--name", "web", "--disk", "8", "--boot", "--json").json
    assert made["vm"]["state"] == "running"
    yield made["vm"]["vm_id"]
    assert shell("vm", "delete", made["vm"]["vm_id"]).code in (Exit.OK, Exit.NOT_FOUND)


def test_a_vm_lives_and_dies_by_its_name(shell: Shell) -> None:
    """Every verb, its sentence, and the state that follows."""
    created = shell(
        "vm", "create", "--name", "db", "--memory", "64", "--arg", "spin=1", "--label", "team=a"
    )
    assert created.code == 0, created
    assert created.out.startswith("create done: VM ")
    assert "db is created" in created.out
    for verb, state in (
        ("boot", "running"),
        ("pause", "paused"),
        ("resume", "running"),
        ("reboot", "running"),
        ("shutdown", "stopped"),
    ):
        done = shell("vm", verb, "db")
        assert done.code == 0, done
        assert done.out.endswith(f"db is {state}\n")
    seen = shell("vm", "get", "db", "--json").json
    assert (seen["state"], seen["incarnation"], seen["simulated"]) == ("stopped", 2, True)
    assert seen["spec"]["labels"] == {"team": "a"}
    assert seen["final_counters"]["cpu_ns"] > 0
    assert "simulator (simulated)" in shell("vm", "get", "db").out
    assert "db is deleted" in shell("vm", "delete", "db").out
    assert shell("vm", "get", "db").code == Exit.NOT_FOUND


def test_a_vm_gets_what_the_options_say(shell: Shell, stack: Path) -> None:
    """Metadata, balloon and limits; a person looking at the VM sees no value of the metadata."""
    secrets = stack / "metadata.json"
    secrets.write_text('{"password": "hunter2", "role": "none"}')
    made = shell(
        *("vm", "create", "--name", "rich", "--disk", "8", "--boot", "--json", "--balloon", "16"),
        *("--metadata", "role=web", "--metadata-file", str(secrets)),
        *("--limit", "disk_bytes_per_s=1000000", "--limit", "net_tx_bytes_per_s=5"),
    ).json
    spec = made["vm"]["spec"]
    assert made["vm"]["state"] == "running"
    assert spec["metadata"] == {"password": "hunter2", "role": "web"}
    assert spec["balloon_mib"] == 16
    assert (spec["limits"]["disk_bytes_per_s"], spec["limits"]["net_tx_bytes_per_s"]) == (10**6, 5)
    shown = shell("vm", "get", "rich").out
    assert "16 MiB" in shown
    assert "disk_bytes_per_s 1000000, net_tx_bytes_per_s 5" in shown
    assert "password, role" in shown
    assert "hunter2" not in shown
    assert shell("vm", "delete", "rich").code == 0


def test_lists_are_tables_for_people_and_documents_for_programs(shell: Shell, vm: str) -> None:
    """No id is cut off in a pipe."""
    listed = shell("vm", "ls", "--json").json["vms"]
    assert [(v["vm_id"], v["name"]) for v in listed] == [(vm, "web")]
    assert vm in shell("vm", "ls").out
    assert shell("vm", "ls", "--state", "paused", "--json").json == {"vms": []}
    wrong = shell("vm", "ls", "--state", "asleep")
    assert wrong.code == Exit.USAGE
    assert "running" in wrong.err


def test_vms_are_labelled_renamed_and_found_again(shell: Shell, vm: str) -> None:
    """Set, removed, cleared; lists by label, image and name, in any order."""
    assert shell("vm", "label", vm).out == f"VM {vm} has no labels\n"
    assert shell("vm", "label", "web", "team=a", "tier=1").out == "team=a\ntier=1\n"
    changed = shell("vm", "label", "web", "team-", "stage=", "--json").json
    assert changed == {"vm_id": vm, "labels": {"stage": "", "tier": "1"}}
    assert "stage=, tier=1" in shell("vm", "get", "web").out
    for options, found in (
        (("--label", "tier"), [vm]),
        (("--label", "tier=1", "--label", "stage="), [vm]),
        (("--label", "tier=2"), []),
        (("--image", "tiny", "--name", "web", "--sort", "-name"), [vm]),
        (("--image", "none"), []),
    ):
        listed = shell("vm", "ls", *options, "--json").json["vms"]
        assert [one["vm_id"] for one in listed] == found
    assert shell("vm", "ls", "--sort", "size").code == Exit.USAGE
    assert shell("vm", "ls", "--host", "h1").code == Exit.DENIED
    for wrong in ("team", "A=1", "team=a b", "-"):
        assert shell("vm", "label", "web", wrong).code == Exit.USAGE
    assert shell("vm", "label", "web", "a=1", "a-").code == Exit.USAGE
    assert shell("vm", "label", "web", "new=1", "--clear").out == "new=1\n"
    assert shell("vm", "rename", "web", "www").out == f"VM {vm} is www\n"
    assert shell("vm", "get", "web").code == Exit.NOT_FOUND
    assert shell("vm", "get", "www", "--json").json["generation"] == 5
    assert shell("vm", "rename", "www", "").out == f"VM {vm} is without a name\n"


def test_snapshots_and_images_are_asked_for(shell: Shell, vm: str) -> None:
    """A simulated VM cannot have a snapshot, and the words say so; images are the hosts'."""
    refused = shell("vm", "snapshot", vm)
    assert refused.code == Exit.USAGE
    assert "cannot take snapshots" in refused.err
    assert shell("vm", "snapshot", vm, "--kind", "half").code == Exit.USAGE
    assert shell("snapshot", "ls", "--json").json == {"snapshots": []}
    assert shell("snapshot", "ls", "--vm", "web").code == 0
    assert shell("snapshot", "rm", vm).code == Exit.NOT_FOUND
    assert shell("snapshot", "rm", "x").code == Exit.USAGE
    assert shell("vm", "restore", vm, vm).code == Exit.NOT_FOUND
    assert shell("vm", "restore", vm, "x").code == Exit.USAGE
    assert "tiny\n" in shell("image", "offered").out
    assert "tiny" in shell("image", "offered", "--json").json["images"]


def test_without_waiting_the_operation_is_named(shell: Shell, vm: str) -> None:
    """`--no-wait` returns once the command is accepted."""
    accepted = shell("vm", "shutdown", vm, "--no-wait", "--json").json
    assert UUID(accepted["operation"]["operation_id"]).version == 7
    assert accepted["operation"]["verb"] == "shutdown"


def test_usage_and_top_agree_on_whose_vm_it_is(shell: Shell, vm: str) -> None:
    """What a VM uses, now and in all; simulated numbers say so."""
    top = shell("top", "--once", "--json").json
    assert top["customer_id"] == "demo"
    rates = {rate["vm_id"]: rate for rate in top["vms"]}[vm]
    assert rates["samples_per_s"] >= 5
    assert rates["simulated"] is True
    shown = shell("top")
    assert "web" in shown.out
    assert "(simulated)" in shown.out
    shell("vm", "shutdown", vm)
    usage = shell("usage", "--vm", vm, "--json").json
    (row,) = usage["vms"]
    final = shell("vm", "get", vm, "--json").json["final_counters"]
    if row["settled"]:
        assert {meter: row[meter] for meter in METERS} == {m: final[m] for m in METERS}
    assert all(0 < row[meter] <= final[meter] for meter in METERS)
    table = shell("usage")
    assert "web" in table.out
    assert "(simulated)" in table.out


def test_a_window_is_checked_before_it_is_asked_for(shell: Shell) -> None:
    """The option is named."""
    for option, value in (("--start", "yesterday"), ("--end", "31/1/2026"), ("--vm", "web")):
        done = shell("usage", option, value, "--json")
        assert done.code == Exit.USAGE
        assert option in done.problem["detail"]
    backwards = shell("usage", "--start", "2026-01-02", "--end", "2026-01-01", "--json")
    assert (backwards.code, backwards.problem["status"]) == (Exit.USAGE, 400)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["vm", "get", "nobody"], Exit.NOT_FOUND, "nobody"),
        (["vm", "boot", "01a20b7b-6d30-70a9-9d32-fffb1aaf2513"], Exit.NOT_FOUND, "no such VM"),
        (["vm", "create", "--image", "no-such"], Exit.USAGE, "image"),
        (["vm", "create", "--image", "../etc"], Exit.USAGE, "image"),
        (["vm", "create", "--arg", "init=/bin/sh"], Exit.USAGE, "kernel_args"),
        (["vm", "create", "--arg", "root=x", "--boot"], Exit.USAGE, "root"),
        (["vm", "create", "--arg", "spin"], Exit.USAGE, "NAME=VALUE"),
        (["vm", "create", "--memory", "1"], Exit.USAGE, "memory"),
        (["vm", "create", "--metadata", "a=b", "--no-network"], Exit.USAGE, "network"),
        (["vm", "create", "--metadata", "a"], Exit.USAGE, "--metadata"),
        (["vm", "create", "--metadata-file", "/dev/null"], Exit.USAGE, "--metadata-file"),
        (["vm", "create", "--metadata-file", "/no/such"], Exit.USAGE, "No such file"),
        (["vm", "create", "--balloon", "128"], Exit.USAGE, "balloon_mib"),
        (["vm", "create", "--limit", "disk_ops_per_s=many"], Exit.USAGE, "NAME=NUMBER"),
        (["vm", "create", "--limit", "disk=1"], Exit.USAGE, "disk"),
        (["vm", "create", "--limit", "disk_ops_per_s=1"], Exit.USAGE, "no disk"),
        (["token", "--customer", "a.b"], Exit.USAGE, "--customer"),
        (["vm", "create", "--no-such-option"], Exit.USAGE, "no-such-option"),
        (["fly"], Exit.USAGE, "fly"),
    ],
)
def test_what_is_refused_says_why(
    shell: Shell, arguments: list[str], code: Exit, word: str
) -> None:
    """A sentence on stderr, or a problem with `--json`; nothing is made."""
    before = shell("vm", "ls", "--json").json
    plain = shell(*arguments)
    assert (plain.code, plain.out) == (code, "")
    assert word in plain.err
    assert word in shell(*arguments, "--json").problem["detail"]
    assert shell("vm", "ls", "--json").json == before


def test_a_bad_token_is_denied_and_not_shown(shell: Shell) -> None:
    """Nor is it sent anywhere but to the API that was named."""
    done = shell("vm", "ls", DECISEC_TOKEN="eyJhbGciOiJIUzI1NiJ9.e30.c2VjcmV0")
    assert done.code == Exit.DENIED
    assert "decisec token" in done.err
    assert "c2VjcmV0" not in done.err
    elsewhere = shell("vm", "ls", DECISEC_API_URL="http://127.0.0.1:9")
    assert elsewhere.code == Exit.DENIED
    assert "DECISEC_TOKEN" in elsewhere.err


def test_another_customers_token_sees_none_of_it(shell: Shell, vm: str) -> None:
    """A foreign VM and a missing one are the same."""
    token = shell("token", "--customer", "globex").out.strip()
    assert shell("vm", "ls", "--json", DECISEC_TOKEN=token).json == {"vms": []}
    foreign = shell("vm", "shutdown", vm, "--json", DECISEC_TOKEN=token)
    assert (foreign.code, foreign.problem["status"]) == (Exit.NOT_FOUND, 404)
    assert shell("usage", "--json", DECISEC_TOKEN=token).json["vms"] == []
    assert shell("vm", "get", vm, "--json").json["state"] == "running"


def test_nobody_there_is_told_apart_from_not_found(shell: Shell, tmp_path: Path) -> None:
    """What to do stands in the sentence."""
    alone = shell.elsewhere(tmp_path)
    for arguments in (["vm", "ls"], ["top"], ["streams", "info"], ["host", "ls"]):
        done = alone(*arguments)
        assert done.code == Exit.UNREACHABLE
        assert "decisec dev" in done.err
    assert alone("token").code == Exit.NOT_FOUND
    away = alone("vm", "ls", DECISEC_API_URL="http://127.0.0.1:9", DECISEC_TOKEN="t")
    assert away.code == Exit.UNREACHABLE
    away = alone("streams", "info", DECISEC_NATS_URL="nats://127.0.0.1:9")
    assert away.code == Exit.UNREACHABLE


def test_streams_are_as_declared(shell: Shell) -> None:
    """Applying again changes nothing; what they hold can be seen."""
    assert shell("streams", "diff").out == "the server is as declared\n"
    assert shell("streams", "diff", "--json").json == {"differences": []}
    assert shell("streams", "apply", "--json").json["changed"] == []
    other = shell("streams", "diff", "--partitions", "16")
    assert other.code == 1
    assert other.out.startswith("stream METRICS_RAW: different\n")
    streams = {
        stream["name"]: stream for stream in shell("streams", "info", "--json").json["streams"]
    }
    assert streams["METRICS_RAW"]["messages"] > 0
    assert streams["METRICS_REJECTED"]["messages"] == 0
    assert "METRICS_ENRICHED" in shell("streams", "info").out


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["vm"], ["vm", "create"], ["streams", "diff"], ["usage"], ["top"], ["dev"], ["demo"],
        ["events"], ["metrics"],
        ["host"], ["host", "ls"], ["host", "get"], ["host", "drain"], ["host", "undrain"],
        ["token"], ["token", "keygen"], ["token", "revoke"], ["token", "ls"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_explains_itself_without_a_stack(
    shell: Shell, tmp_path: Path, arguments: list[str]
) -> None:
    """Help names the options and, for commands, the exit codes."""
    done = shell.elsewhere(tmp_path)(*arguments, "--help")
    assert done.code == 0
    assert "Usage:" in done.out
    assert "Exit codes" in done.out


def test_it_is_a_program(tmp_path: Path) -> None:
    """As a process of its own: results and errors go where they belong, codes reach the shell."""
    run = functools.partial(
        subprocess.run, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("DECISEC_")},
        timeout=60, check=False,
    )  # fmt: skip
    version = run([sys.executable, "-m", "decisec", "version", "--json"])
    assert (version.returncode, version.stderr) == (0, "")
    assert json.loads(version.stdout)["version"]
    alone = run([sys.executable, "-m", "decisec", "vm", "ls"])
    assert (alone.returncode, alone.stdout) == (Exit.UNREACHABLE, "")
    assert alone.stderr.startswith("error: no API address")
