"""`vm.toml`: what it says is what is asked for, and what is wrong in it is named, all of it."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decisec.cli import vm_file
from decisec.cli.exits import CommandError
from decisec.cli.templates import FIELDS, PURPOSES, Template
from decisec.cli.toml_text import to_toml
from schemas.api import CreateVmRequest
from schemas.hosts import Customer

NAMES = st.text("abcxyz019", min_size=1, max_size=8).map("n".__add__)
SMALL = st.integers(0, 1000)
METADATA = st.dictionaries(
    NAMES,
    st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=20),
    max_size=3,
)


@st.composite
def requests(draw: st.DrawFn) -> CreateVmRequest:
    """Any that can be asked for."""
    network = draw(st.booleans())
    labels = draw(st.dictionaries(NAMES, NAMES, max_size=3))
    memory_mib = draw(st.integers(16, 4096))
    limits = {
        name: draw(SMALL)
        for name in ("disk_bytes_per_s", "disk_ops_per_s", "net_tx_bytes_per_s")
        if network or not name.startswith("net")
    }
    placement: dict[str, Any] = {
        "host_labels": draw(st.dictionaries(NAMES, NAMES, max_size=2)),
        "driver": draw(st.sampled_from(["", "qemu", "simulator"])),
        "apart": draw(st.sampled_from(["preferred", "required"])),
    }
    if labels:
        placement["apart_by"] = draw(st.sampled_from(["", *labels]))
    wanted = {
        "image": draw(NAMES),
        "name": draw(st.just("") | NAMES),
        "vcpus": draw(st.integers(1, 32)),
        "memory_mib": memory_mib,
        "disk_mib": draw(SMALL),
        "network": network,
        "restart": draw(st.sampled_from(["never", "on-failure"])),
        "track_memory": draw(st.booleans()),
        "kernel_args": draw(st.dictionaries(NAMES, NAMES, max_size=2)),
        "labels": labels,
        "metadata": draw(METADATA) if network else {},
        "balloon_mib": draw(st.integers(0, memory_mib - 1)),
        "limits": limits,
        "placement": placement,
        "networking": draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "ipv4": st.just(True),
                    "inbound": st.just("closed"),
                    "ports": st.lists(st.just("tcp/443"), max_size=2),
                    "prefix": st.sampled_from([64, 128]),
                    "mtu": st.integers(1280, 9000),
                },
            )
        )
        if network
        else {},
        "boot": draw(st.booleans()),
    }
    return msgspec.convert(wanted, CreateVmRequest)


@given(requests())
def test_a_request_comes_back_from_its_file(request: CreateVmRequest) -> None:
    """Spec, TOML, spec: the same, and nothing wrong in it."""
    document = tomllib.loads(to_toml(vm_file.document_of(request)))
    assert vm_file.wrong_in(document) == []
    assert vm_file.request_of(document) == request


@settings(max_examples=30)
@given(requests(), requests(), st.sampled_from(Template))
def test_what_stands_later_goes_before(
    below: CreateVmRequest, above: CreateVmRequest, template: Template
) -> None:
    """Options over file over template, and of maps name by name."""
    file = {"image": below.image, "vcpus": below.vcpus, "labels": below.labels}
    options = {"vcpus": above.vcpus, "labels": above.labels}
    found = vm_file.request_of(FIELDS[template], file, options)
    assert (found.image, found.vcpus) == (below.image, above.vcpus)
    assert found.memory_mib == FIELDS[template]["memory_mib"]
    assert found.labels == {**below.labels, **above.labels}


@given(st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(["limits", "vcpus", "x", "labels"]), inner, max_size=3),
).filter(lambda found: isinstance(found, dict)))  # fmt: skip
def test_whatever_a_file_holds_there_are_words_for_it(document: dict[str, Any]) -> None:
    """What is not refused field by field can be asked for, but for what is between fields."""
    if not vm_file.wrong_in(document):
        assert vm_file.request_of(document).image


@pytest.mark.parametrize(
    ("text", "wrongs"),
    [
        ("memory = 5", ["memory: no such key; did you mean memory_mib?"]),
        ('vcpus = "2"', ["vcpus: expected `int`, got `str`"]),
        ("vcpus = 0", ["vcpus: expected `int` >= 1"]),
        ('restart = "on-failur"', [
            "restart: none of never, on-failure; did you mean on-failure?"]),
        ('template = "high-cpus"', [
            "template: none of minimal, standard, high-cpu, high-memory, development; "
            "did you mean high-cpu?"]),
        ("limits = 3", ["limits: expected `object`, got `int`"]),
        ("[limits]\ndisk_op_per_s = 1\nnet_rx_bytes_per_s = -1", [
            "limits.disk_op_per_s: no such key; did you mean disk_ops_per_s?",
            "limits.net_rx_bytes_per_s: expected `int` >= 0"]),
        ('[placement]\ndriver = "kvm"', [
            'placement.driver: none of "", firecracker, cloud-hypervisor, qemu, simulator']),
        ("[placement.host_labels]\na = 1", [
            "placement.host_labels.a: expected `str`, got `int`"]),
        ('[networking]\nprefix = "64"\nports = ["tcp/443", "tcp/0"]', [
            "networking.prefix: expected `int`, got `str`",
            "networking.ports[1]: not of the form that it must have: docs/vms.md"]),
        ("[metadata]\nhost = 5\nok = 'x'", ["metadata.host: expected `str`, got `int`"]),
    ],
)  # fmt: skip
def test_the_field_is_named(text: str, wrongs: list[str]) -> None:
    """With what was meant, where that can be guessed."""
    assert list(map(str, vm_file.wrong_in(tomllib.loads(text)))) == wrongs


def test_no_value_of_metadata_is_shown() -> None:
    """Not even one that cannot be."""
    (wrong,) = vm_file.wrong_in({"metadata": {"password": "hunter2\x00"}})
    assert wrong.field == "metadata.password"
    assert "hunter2" not in str(vm_file.refused("vm.toml", [wrong]))


def test_each_template_can_be_asked_for_and_fits_a_usual_quota() -> None:
    """Four times at least: nobody is used up by trying one."""
    quota = Customer(customer_id="c", created_at=datetime.now(UTC)).quota
    for template in Template:
        request = vm_file.request_of(FIELDS[template])
        assert request.vcpus * 4 <= quota.vcpus
        assert request.memory_mib * 4 <= quota.memory_mib
        assert request.disk_mib * 4 <= quota.disk_mib
        assert PURPOSES[template]


def test_a_file_that_is_none_says_where(tmp_path: Any) -> None:
    """Line and column."""
    file = tmp_path / "vm.toml"
    for content, word in ((b"image = ?", "line 1"), (b"\xff", "UTF-8"), (b"#" * 2**21, "1 MiB")):
        file.write_bytes(content)
        with pytest.raises(CommandError, match=word):
            vm_file.read(str(file))
    with pytest.raises(CommandError, match="No such file"):
        vm_file.read(str(tmp_path / "no"))
