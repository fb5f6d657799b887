"""Contexts: kept for their owner only, never shown, and used in the order that is documented."""

from __future__ import annotations

import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decisec.cli import chosen, connection, context_file
from decisec.cli.app import tree
from decisec.cli.exits import Exit
from tests.support.certificates import loopback_tls
from tests.support.shell import Shell
from tests.support.stub_api import StubApi, named_api

SECRET = "hunter2-token"


@pytest.fixture
def shell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell(tmp_path, capfd, monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "decisec" / "contexts.toml"


@pytest.fixture(scope="module")
def apis() -> Iterator[list[StubApi]]:
    with (
        named_api("one").serving() as one,
        named_api("two").serving() as two,
        named_api("three").serving() as three,
    ):
        yield [one, two, three]


def test_they_are_made_chosen_changed_renamed_and_removed(shell: Shell, file: Path) -> None:
    """The whole life, in tables and documents."""
    assert shell("context", "ls", "--json").json == {"current": None, "contexts": []}
    assert shell("context", "show").code == Exit.NOT_FOUND
    made = shell("context", "add", "prod", "--api-url", "https://api.test", "--token", SECRET)
    assert made.out == f"prod is in {file}; `decisec context use prod` chooses it\n"
    assert shell("context", "add", "prod", "--api-url", "http://x").code == Exit.USAGE
    assert shell("context", "use", "prod").out == "commands go to prod\n"
    dev = shell("context", "add", "dev", "--state-dir", "d", "--use", "--json").json
    assert dev == {"name": "dev", "current": True, "state_dir": str(file.parents[2] / "d")}
    listed = shell("context", "ls", "--json").json
    assert (listed["current"], [one["name"] for one in listed["contexts"]]) == (
        "dev",
        ["dev", "prod"],
    )
    assert shell("context", "rename", "dev", "here").code == 0
    assert shell("context", "rename", "here", "prod").code == Exit.USAGE
    assert shell("context", "show", "--json").json["name"] == "here"
    assert shell("context", "show", "--json", DECISEC_CONTEXT="prod").json["name"] == "prod"
    changed = shell("context", "set", "prod", "--token-command", "pass show x", "--json").json
    assert changed["token_command"] == "pass (arguments hidden)"
    assert "token" not in changed
    assert shell("context", "set", "prod", "--api-url", "").code == Exit.USAGE
    assert shell("context", "rm", "here").out == "removed here; no context is chosen\n"
    assert shell("context", "use", "--none", "--json").json == {"current": None}
    assert shell("context", "rm", "prod", "--json").json == {"removed": "prod", "current": None}
    assert shell("context", "rm", "prod").code == Exit.NOT_FOUND


def test_no_secret_is_ever_shown(shell: Shell, file: Path) -> None:
    """Neither a token nor a password of an address, an argument of a command or a mode."""
    url = "https://user:hunter2-pw@api.test"
    nats = "tls://hunter2-nats@bus.test"
    made = [
        shell("context", "add", "a", "--api-url", url, "--nats-url", nats, "--token", SECRET),
        shell("context", "add", "b", "--api-url", url, "--token-command", f"echo {SECRET}"),
    ]
    for command in (["ls"], ["show", "a"], ["show", "b"], ["set", "a", "--use"], ["set", "b"]):
        made += [shell("context", *command), shell("context", *command, "--json")]
    for done in made:
        assert done.code == 0, done
        assert "hunter2" not in done.out + done.err
    assert "hunter2" not in repr(context_file.Context(token=SECRET))
    assert SECRET in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o640)
    refused = shell("context", "ls")
    assert (refused.code, f"chmod 600 {file}" in refused.err) == (Exit.USAGE, True)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a b", "--api-url", "http://x"], "no name"),
        (["../x", "--api-url", "http://x"], "no name"),
        (["x"], "--state-dir"),
        (["x", "--api-url", "ftp://x"], "https://"),
        (["x", "--nats-url", "127.0.0.1:4222"], "nats://"),
        (["x", "--api-url", "http://x", "--token-file", "/no/such"], "no file /no/such"),
        (["x", "--api-url", "http://x", "--token", "a", "--token-command", "b"], "one of them"),
    ],
)
def test_what_makes_no_sense_is_refused(
    shell: Shell, file: Path, arguments: list[str], word: str
) -> None:
    """In words, and nothing is written."""
    done = shell("context", "add", *arguments)
    assert done.code == Exit.USAGE
    assert word in done.err
    assert not file.exists() or not context_file.read().contexts


@pytest.mark.parametrize(
    ("content", "word"), [("contexts = 1", "$.contexts"), ("x = ?", "line 1"), ("x = 1", "x")]
)
def test_a_file_that_is_none_is_named(shell: Shell, file: Path, content: str, word: str) -> None:
    """With what is wrong in it."""
    file.parent.mkdir(parents=True)
    file.write_text(content)
    for command in (["context", "ls"], ["vm", "ls"]):
        done = shell(*command)
        assert done.code == Exit.USAGE
        assert str(file) in done.err
        assert word in done.err


def test_contexts_that_are_made_at_once_are_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None undoes another; whoever reads meanwhile finds a whole file."""
    monkeypatch.setenv("DECISEC_CONTEXTS", str(tmp_path / "c.toml"))
    one = context_file.Context(api_url="http://x")

    def add(number: int) -> None:
        for n in range(5):
            context_file.change(
                lambda before, n=n: context_file.Contexts(  # type: ignore[misc]
                    contexts={**before.contexts, f"c-{number}-{n}": one}
                )
            )
            context_file.read()

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(context_file.read().contexts) == 20
    assert [found.name for found in tmp_path.iterdir()] == ["c.toml"]


def test_what_is_said_first_holds(shell: Shell, apis: list[StubApi], tmp_path: Path) -> None:
    """Option, variable, DECISEC_CONTEXT, chosen context, the stack on .decisec."""
    one, two, three = apis
    for name, api in (("one", one), ("two", two), ("three", three)):
        made = shell("context", "add", name, "--api-url", api.url, "--token", f"t-{name}")
        assert made.code == 0

    def goes(*arguments: str, **env: str) -> tuple[str, str]:
        before = {id(api): len(api.tokens) for api in apis}
        done = shell("image", "offered", *arguments, **env)
        assert done.code == 0, done
        (asked,) = [api for api in apis if len(api.tokens) > before[id(api)]]
        return done.out.strip(), asked.tokens[-1]

    nowhere = shell("image", "offered")
    assert nowhere.code == Exit.UNREACHABLE
    assert "decisec context use" in nowhere.err
    assert shell("context", "use", "one").code == 0
    assert goes() == ("one", "t-one")
    assert goes(DECISEC_CONTEXT="two") == ("two", "t-two")
    assert goes("--context", "three", DECISEC_CONTEXT="two") == ("three", "t-three")
    variables = {"DECISEC_API_URL": three.url, "DECISEC_TOKEN": "t-env"}
    assert goes(**variables, DECISEC_CONTEXT="two") == ("three", "t-env")
    assert goes("--context", "two", **variables) == ("two", "t-two")
    assert goes("--token", "t-option", **variables) == ("three", "t-option")
    assert goes("--token", "t-option", "--context", "two", **variables) == ("two", "t-option")
    assert goes("--api-url", two.url, "--token", "t-option") == ("two", "t-option")
    # Before the command's name as well.
    done = shell("--context", "two", "image", "offered")
    assert done.out == "two\n"
    # What one command line chose is forgotten by the next.
    assert goes() == ("one", "t-one")
    # A state directory that is named goes before what was chosen, and beside no --context.
    for arguments, env in (
        (["--state-dir", str(tmp_path)], {}),
        ([], {"DECISEC_STATE_DIR": str(tmp_path)}),
    ):
        there = shell("image", "offered", *arguments, **env)
        assert (there.code, str(tmp_path) in there.err) == (Exit.UNREACHABLE, True)
    assert goes(DECISEC_STATE_DIR=str(tmp_path), DECISEC_CONTEXT="two") == ("two", "t-two")
    both = shell("image", "offered", "--state-dir", str(tmp_path), "--context", "two")
    assert both.code == Exit.USAGE


def test_a_contexts_token_goes_to_its_own_api_only(shell: Shell, apis: list[StubApi]) -> None:
    """An address given by hand gets no token but one given by hand."""
    one, two, _ = apis
    assert shell("context", "add", "a", "--api-url", one.url, "--token", SECRET, "--use").code == 0
    before = len(two.tokens)
    refused = shell("image", "offered", "--api-url", two.url)
    assert (refused.code, len(two.tokens)) == (Exit.DENIED, before)
    assert shell("image", "offered", "--api-url", f"{one.url}/").code == 0
    assert one.tokens[-1] == SECRET


def test_a_token_may_lie_in_a_file_or_come_from_a_program(
    shell: Shell, apis: list[StubApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked up for each command; what goes wrong names program or file, and no secret."""
    api = apis[0]
    kept = tmp_path / "token"
    kept.write_text("from-file\n")
    assert (
        shell("context", "add", "a", "--api-url", api.url, "--token-file", "token", "--use").code
        == 0
    )
    assert shell("image", "offered").code == 0
    assert api.tokens[-1] == "from-file"
    kept.unlink()
    gone = shell("image", "offered")
    assert (gone.code, str(kept) in gone.err) == (Exit.DENIED, True)
    program = f"{sys.executable} -c \"print('from-program')\""
    assert shell("context", "set", "a", "--token-command", program).code == 0
    assert shell("image", "offered").code == 0
    assert api.tokens[-1] == "from-program"
    for command, word in (
        (f"{sys.executable} -c 'raise SystemExit(3)' {SECRET}", "exit code 3"),
        (f"/no/such/program {SECRET}", "cannot be run"),
        (f"{sys.executable} -c pass {SECRET}", "printed nothing"),
    ):
        assert shell("context", "set", "a", "--token-command", command).code == 0
        failed = shell("image", "offered")
        assert failed.code == Exit.DENIED
        assert word in failed.err
        assert SECRET not in failed.err
    monkeypatch.setattr(sys, "stdin", (tmp_path / "in").open("w+"))
    sys.stdin.write("from-stdin\n")
    sys.stdin.seek(0)
    assert shell("context", "set", "a", "--token", "-").code == 0
    sys.stdin.close()
    assert shell("image", "offered").code == 0
    assert api.tokens[-1] == "from-stdin"


def test_an_authority_of_ones_own_is_trusted(shell: Shell, tmp_path: Path) -> None:
    """For its API only; without it the error says what to set."""
    tls, authority = loopback_tls(tmp_path)
    with named_api("secure", tls).serving() as api:
        assert shell("context", "add", "a", "--api-url", api.url, "--token", "t", "--use").code == 0
        refused = shell("image", "offered")
        assert refused.code == Exit.UNREACHABLE
        assert "--api-ca" in refused.err
        assert shell("context", "set", "a", "--api-ca", str(authority)).code == 0
        assert shell("image", "offered").out == "secure\n"
        variables = {"DECISEC_API_URL": api.url, "DECISEC_TOKEN": "t"}
        assert shell("image", "offered", **variables).code == Exit.UNREACHABLE
        assert shell("image", "offered", **variables, DECISEC_API_CA=str(authority)).code == 0
        wrong = shell("image", "offered", **variables, DECISEC_API_CA=str(tmp_path / "key.pem"))
        assert (wrong.code, "DECISEC_API_CA" in wrong.err) == (Exit.USAGE, True)


def test_the_bus_goes_by_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its credentials come from where its address comes from, variables before a context."""
    monkeypatch.setenv("DECISEC_CONTEXTS", str(tmp_path / "c.toml"))
    for name in ("DECISEC_NATS_CA", "DECISEC_NATS_CREDENTIALS", "DECISEC_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    one = context_file.Context(
        nats_url="tls://bus.test", nats_credentials="/own.creds", nats_ca="/ca.pem"
    )
    context_file.change(lambda _: context_file.Contexts(current="one", contexts={"one": one}))

    def found(nats_url: str = "") -> tuple[str, str, str]:
        settings = connection.bus_settings(nats_url, chosen.DEFAULT_STATE)
        return settings.nats_url, settings.nats_credentials, settings.nats_ca

    assert found() == ("tls://bus.test", "/own.creds", "/ca.pem")
    assert found("nats://other.test") == ("nats://other.test", "", "")
    monkeypatch.setenv("DECISEC_NATS_CREDENTIALS", "/env.creds")
    assert found() == ("tls://bus.test", "/env.creds", "/ca.pem")
    assert found("nats://other.test") == ("nats://other.test", "/env.creds", "")
    with chosen.none_yet():
        chosen._choose("one")
        assert found() == ("tls://bus.test", "/own.creds", "/ca.pem")


def test_every_command_that_talks_takes_a_context() -> None:
    """Those to come as well: the option is added to the tree, not to each of them."""
    without = []
    stack: list[tuple[list[str], Any]] = [([], tree())]
    while stack:
        path, command = stack.pop()
        names = {param.name for param in command.params}
        if names & {"api_url", "nats_url"} and path[:1] != ["context"] and "context" not in names:
            without.append(path)
        stack += [([*path, name], c) for name, c in getattr(command, "commands", {}).items()]
    assert without == []


def test_contexts_lie_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative directory there is ignored, as the specification wants it."""
    monkeypatch.delenv("DECISEC_CONTEXTS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in (
        (str(tmp_path / "x"), tmp_path / "x"),
        ("", tmp_path / ".config"),
        ("relative", tmp_path / ".config"),
    ):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert context_file.path() == folder / "decisec" / "contexts.toml"
