"""The description of the bus: the file is this version's, and nothing in it breaks anybody."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decisec.devkit.api_contract import text
from decisec.devkit.bus_contract import FILE, breaking, main
from decisec.messages.document import document

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(document()))
    return found


def test_the_file_is_what_the_schemas_say(made: dict[str, Any]) -> None:
    """And this version breaks nobody who goes by the file."""
    committed = (ROOT / FILE).read_text()
    assert breaking(json.loads(committed), made) == [], (
        "this change breaks others: see docs/api-policy.md for what to do instead"
    )
    assert committed == text(made), f"run `just asyncapi` and commit {FILE}"


Document = dict[str, Any]
Change = Callable[[Document], Any]


def schema(d: Document, name: str) -> Any:
    return d["components"]["schemas"][name]


def field(d: Document, name: str, which: str) -> Any:
    return schema(d, name)["properties"][which]


def message(d: Document, name: str) -> Any:
    return d["components"]["messages"][name]


def channel(d: Document, name: str) -> Any:
    return d["channels"][name]


def frame(d: Document) -> Any:
    return schema(d, "Frame")


NEW = {"type": "string"}


def requires(d: Document, name: str, what: str) -> None:
    """A field of a schema that was not there is needed now."""
    schema(d, name)["properties"].setdefault(what, NEW)
    schema(d, name)["required"] = [*schema(d, name).get("required", ()), what]


BREAKING: dict[str, Change] = {
    "a subject is gone": lambda d: d["channels"].pop("vmEvent"),
    "a subject is another": lambda d: channel(d, "audit").update(address="audit.x.{customer}"),
    "a stream keeps it no more": lambda d: channel(d, "audit").pop("x-decisec-stream"),
    "an event is told no more": lambda d: channel(d, "vmEvent")["messages"].pop("vm_paused"),
    "a question is taken no more": lambda d: d["channels"].pop("requestPatch"),
    "a question of operators is taken no more": lambda d: channel(d, "storeQuestion")["parameters"][
        "question"
    ]["enum"].remove("repair"),
    "a role may say it no more": lambda d: d["operations"].pop("customerSendsRequestCreate"),
    "a role may hear it no more": lambda d: d["operations"].pop("batcherReceivesAudit"),
    "a role may say it of itself only": lambda d: d["operations"]["agentSendsVmEvent"].update(
        {"x-decisec-how": ["publish, its own"]}
    ),
    "a role may say less": lambda d: d["operations"]["collectorSendsHostEvent"].update(
        messages=[{"$ref": "#/channels/hostEvent/messages/gap_opened"}]
    ),
    "nothing answers": lambda d: d["operations"]["operatorSendsStoreQuestion"].pop("reply"),
    "JSON is msgpack": lambda d: message(d, "AuditEntry").update(contentType="application/msgpack"),
    "a header is gone": lambda d: message(d, "BootVm")["headers"]["properties"].pop("Nats-Msg-Id"),
    "a header is needed": lambda d: message(d, "Frame")["headers"].update(required=["Nats-Msg-Id"]),
    "customers must send more": lambda d: requires(d, "ListRequest", "state"),
    "customers may send less": lambda d: field(d, "CreateVmRequest", "vcpus").update(maximum=16),
    "what customers send is gone": lambda d: schema(d, "PatchRequest")["properties"].pop("patch"),
    "an answer lacks a field": lambda d: schema(d, "VmView")["properties"].pop("state"),
    "an answer may lack a field": lambda d: schema(d, "VmView")["required"].remove("state"),
    "a command lacks a field": lambda d: schema(d, "ShutdownVm")["properties"].pop("grace_s"),
    "a command needs more": lambda d: requires(d, "BootVm", "priority"),
    "an event needs what older ones lack": lambda d: requires(d, "VmStarted", "kernel"),
    "an event has a field of another type": lambda d: field(d, "VmStopped", "at").update(
        type="integer"
    ),
    "a bucket's value may be null": lambda d: field(d, "HostInfo", "driver").update(
        type=["string", "null"]
    ),
    "a number of a stored value is smaller": lambda d: field(d, "VmRecord", "generation").update(
        maximum=9
    ),
    "a frame has a column in the middle": lambda d: frame(d)["items"].insert(12, {"title": "x"}),
    "two columns change places": lambda d: frame(d)["items"].insert(14, frame(d)["items"].pop(15)),
    "a column is gone": lambda d: frame(d)["items"].pop(),
    "a frame needs more": lambda d: frame(d).update(minItems=9),
    "a frame may have less": lambda d: frame(d).update(minItems=5),
    "a place of a frame has another type": lambda d: frame(d)["items"][3].update(type="string"),
    "a type that others hold is another": lambda d: schema(d, "ErrorInfo")["properties"].pop(
        "code"
    ),
}

HARMLESS: dict[str, Change] = {
    "nothing": lambda d: None,
    "a subject": lambda d: d["channels"].update(more=channel(d, "audit")),
    "an event": lambda d: channel(d, "vmEvent")["messages"].update(
        vm_moved={"$ref": "#/components/messages/VmPaused"}
    ),
    "a role may say it as well": lambda d: d["operations"].update(
        batcherSendsHostEvent=d["operations"]["collectorSendsHostEvent"]
    ),
    "a role may say it of others too": lambda d: d["operations"]["agentSendsMetricsRaw"].update(
        {"x-decisec-how": ["publish"]}
    ),
    "a header": lambda d: message(d, "Frame")["headers"]["properties"].update(more=NEW),
    "a field that may be there": lambda d: schema(d, "BootVm")["properties"].update(more=NEW),
    "a column at the end": lambda d: frame(d)["items"].append({"title": "x", "type": "integer"}),
    "customers may send more": lambda d: field(d, "CreateVmRequest", "vcpus").update(maximum=64),
    "customers need send less": lambda d: schema(d, "PatchRequest").update(required=["vm_id"]),
    "an answer always has a field": lambda d: schema(d, "VmView")["required"].append("driver"),
    "one more code": lambda d: schema(d, "ErrorCode")["enum"].append("gone"),
    "words": lambda d: message(d, "Frame").update(summary="better said"),
}


def changed(made: Document, change: Change) -> Document:
    found = copy.deepcopy(made)
    change(found)
    return found


@pytest.mark.parametrize("what", BREAKING)
def test_what_breaks_somebody_is_told(made: Document, what: str) -> None:
    """One sentence at least, that says where."""
    found = breaking(made, changed(made, BREAKING[what]))
    assert found
    assert all(": " in sentence for sentence in found)


@pytest.mark.parametrize("what", HARMLESS)
def test_what_breaks_nobody_passes(made: Document, what: str) -> None:
    """Additions, and what customers alone send or get."""
    assert breaking(made, changed(made, HARMLESS[what])) == []


def test_the_file_is_not_written_over_a_break(
    tmp_path: Path, made: Document, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only if it is said to be meant; otherwise it stays, and the exit code tells."""
    file = tmp_path / "asyncapi.json"
    assert main(["--file", str(file)]) == 0
    assert file.read_text() == text(made)
    richer = copy.deepcopy(made)
    richer["channels"]["gone"] = richer["channels"]["metricsStored"] | {"address": "metrics.gone"}
    file.write_text(text(richer))
    assert main(["--file", str(file)]) == 1
    assert "metrics.gone: the subject is gone" in capsys.readouterr().err
    assert file.read_text() == text(richer)
    assert main(["--file", str(file), "--breaking"]) == 0
    assert file.read_text() == text(made)
