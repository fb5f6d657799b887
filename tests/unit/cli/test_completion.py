"""What the Tab key offers, and that it never says a word when it cannot offer anything."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from schemas.ids import new_id
from tests.support.shell import Done, Shell
from tests.support.stub_api import StubApi, named_api

VM = str(new_id())


@pytest.fixture
def shell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell(tmp_path, capfd, monkeypatch)


def tab(shell: Shell, *words: str, kind: str = "bash", **env: str) -> Done:
    """What a shell is told when Tab is hit at the end of the last word."""
    line = shlex.join(["decisec", *words[:-1]]) + " " + words[-1]
    return shell(
        _DECISEC_COMPLETE=f"complete_{kind}",
        COMP_WORDS="\n".join(map(shlex.quote, ["decisec", *words])),
        COMP_CWORD=str(len(words)),
        _TYPER_COMPLETE_ARGS=line,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        **env,
    )


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["vm", "cre"], ["create"]),
        (["conte"], ["context"]),
        (["vm", "create", "--temp"], ["--template"]),
        (["vm", "create", "--template", "high"], ["high-cpu", "high-memory"]),
        (["vm", "ls", "--state", "paus"], ["paused"]),
        (["vm", "snapshot", "x", "--kind", "d"], ["diff"]),
        (["events", "--type", "vm_pau"], ["vm_paused"]),
        (["operation", "ls", "--status", "f"], ["failed"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["context", "use", ""], ["dev", "prod"]),
        (["--context", "p"], ["prod"]),
        (["vm", "ls", "--context", "d"], ["dev"]),
    ],
)
def test_what_is_known_here_is_offered(shell: Shell, words: list[str], offered: list[str]) -> None:
    """Commands, options, words and contexts, without any API."""
    for name in ("prod", "dev"):
        assert shell("context", "add", name, "--api-url", "http://127.0.0.1:9").code == 0
    found = tab(shell, *words)
    assert found.out.split() == offered
    assert found.err == ""


def test_names_come_from_the_api_that_the_line_goes_to(shell: Shell) -> None:
    """By option, variable and context."""
    with named_api("one").serving() as one, named_api("two").serving() as two:
        assert shell("context", "add", "a", "--api-url", one.url, "--token", "t").code == 0
        image = ("vm", "create", "--image", "")
        assert tab(shell, "--context", "a", *image).out == "one\n"
        assert tab(shell, *image, DECISEC_CONTEXT="a").out == "one\n"
        env = {"DECISEC_API_URL": two.url, "DECISEC_TOKEN": "t"}
        assert tab(shell, *image, **env).out == "two\n"
        assert tab(shell, *image[:2], "--context", "a", *image[2:], **env).out == "one\n"
        assert tab(shell, *image[:-1], "x", **env).out.split() == []
        assert '"two"' in tab(shell, *image, kind="zsh", **env).out
        assert tab(shell, *image, kind="fish", **env).out == "two\n"


def test_vms_are_offered_by_name_and_by_id(shell: Shell) -> None:
    """An id for one without a name, and for all once an id is begun."""

    def vm(vm_id: str, name: str) -> dict[str, object]:
        return {
            "vm_id": vm_id, "customer_id": "acme", "name": name, "state": "running",
            "spec": {"image": "tiny"}, "host_id": "h", "created_at": "2026-01-01T00:00:00Z",
        }  # fmt: skip

    other = str(new_id())
    vms = {"vms": [vm(VM, "web"), vm(other, "")]}
    with StubApi(lambda _: (200, vms)).serving() as api:
        env = {"DECISEC_API_URL": api.url, "DECISEC_TOKEN": "t"}
        for command in (["get"], ["boot"], ["logs"], ["config", "show"]):
            assert tab(shell, "vm", *command, "", **env).out.split() == ["web", other]
        assert tab(shell, "vm", "get", VM[:4], **env).out.split() == [VM, other]
        assert tab(shell, "vm", "get", "w", kind="fish", **env).out == "web\trunning\n"


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_what_does_not_work_is_passed_over_in_silence(shell: Shell, status: int) -> None:
    """An API that refuses is asked once; one that is away, or an unknown context, not at all."""
    with StubApi(lambda _: (status, {"no": "problem"})).serving() as api:
        env = {"DECISEC_API_URL": api.url, "DECISEC_TOKEN": "t"}
        found = tab(shell, "vm", "get", "", **env)
        assert (found.out.strip(), found.err) == ("", "")
        assert len(api.asked) == 1
    for env in (
        {"DECISEC_API_URL": "http://127.0.0.1:9", "DECISEC_TOKEN": "t"},
        {"DECISEC_CONTEXT": "none"},
        {},
    ):
        found = tab(shell, "vm", "get", "", **env)
        assert (found.out.strip(), found.err) == ("", "")


def test_a_token_command_is_given_no_terminal(shell: Shell, tmp_path: Path) -> None:
    """Nor may it say anything between the words that are being typed."""
    program = tmp_path / "token.sh"
    program.write_text("#!/bin/sh\necho hello >&2\nread line\necho t$line\n")
    program.chmod(0o700)
    with named_api("one").serving() as api:
        made = shell(
            *("context", "add", "a", "--api-url", api.url, "--token-command", str(program))
        )
        assert made.code == 0
        found = tab(shell, "vm", "create", "--image", "", DECISEC_CONTEXT="a")
        assert (found.out, found.err) == ("one\n", "")
        assert api.tokens == ["t"]


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_the_script_is_for_its_shell(shell: Shell, kind: str) -> None:
    """It asks this very program."""
    found = shell("completion", kind)
    assert found.code == 0
    assert f"_DECISEC_COMPLETE=complete_{kind}" in found.out
    assert shell("completion", kind, "--json").json == {
        "shell": kind,
        "script": found.out.rstrip("\n"),
    }
