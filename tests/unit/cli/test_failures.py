"""Errors as they are told: a code for the shell, and a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from decisec.cli.exits import Exit, failure_of
from schemas.api import FieldProblem, Problem
from tests.support.shell import Shell
from tests.support.stub_api import StubApi


@pytest.fixture
def shell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell(tmp_path, capfd, monkeypatch)


def problem(status: int, code: str, *fields: FieldProblem) -> Problem:
    return Problem(type="t", title="t", status=status, code=code, detail="No.", errors=fields)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (problem(401, "unauthenticated"), Exit.DENIED, "`decisec token`"),
        (problem(403, "forbidden"), Exit.DENIED, "`decisec quota`"),
        (problem(404, "not_found"), Exit.NOT_FOUND, "`decisec whoami`"),
        (problem(422, "unknown_image"), Exit.USAGE, "`decisec image offered`"),
        (problem(409, "illegal_transition"), Exit.FAILED, "No."),
        (problem(503, "no_capacity"), Exit.UNREACHABLE, "No."),
        (problem(504, "deadline_exceeded"), Exit.UNREACHABLE, "No."),
        (
            problem(400, "bad_request", FieldProblem(field="$.vcpus", message="too many")),
            Exit.USAGE,
            "error: $.vcpus: too many\n",
        ),
    ],
    ids=lambda value: value.code if isinstance(value, Problem) else None,
)
def test_what_the_api_refuses_says_what_to_do(
    shell: Shell, answer: Problem, code: Exit, words: str
) -> None:
    """The code of the shell goes by the API's; --json has the API's own code and status."""
    with StubApi(lambda _: (answer.status, answer)).serving() as api:
        env = {"DECISEC_API_URL": api.url, "DECISEC_TOKEN": "t"}
        done = shell("vm", "create", **env)
        assert (done.code, done.out) == (code, "")
        assert words in done.err
        told = shell("vm", "create", "--json", **env).problem
        assert (told["code"], told["status"]) == (answer.code, answer.status)


def test_something_else_at_the_address_is_named(shell: Shell) -> None:
    """It is no crash, and no success."""
    with StubApi(lambda _: (200, {"hello": "world"})).serving() as api:
        done = shell("whoami", "--api-url", api.url, "--token", "t")
    assert done.code == Exit.FAILED
    assert "DECISEC_API_URL" in done.err


def test_no_password_of_an_address_is_told() -> None:
    """Where the API cannot be reached."""
    request = httpx.Request("GET", "https://user:hunter2@api.test/v1/vms")
    failure = failure_of(httpx.ConnectError("refused", request=request))
    assert failure is not None
    assert "hunter2" not in failure.message
    assert "api.test" in failure.message
