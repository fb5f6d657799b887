"""docs/cli.md against the commands, the exit codes and the templates that there are."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decisec.cli.app import tree
from decisec.cli.exits import EPILOG, Exit
from decisec.cli.templates import FIELDS, PURPOSES, Template
from tests.support.doc_examples import blocks
from tests.support.shell_examples import commands

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"
NO_DOCUMENT = {("run",), ("flood",), ("bus", "asyncapi")}
"""The first two become another program, whose output is its own; the last prints JSON always."""


def leaves(
    command: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands that do something, by their words."""
    command = command or tree()
    below = getattr(command, "commands", {})
    if path and (not below or command.invoke_without_command):
        yield path, command
    for name, found in below.items():
        yield from leaves(found, (*path, name))


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose first line holds this."""
    lines = PAGE.read_text().splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found: list[list[str]] = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            return found
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_all_commands_are_listed() -> None:
    """And none that is not there: a new command needs its word in the table at the end."""
    listed = {
        (name, *sub.split())
        for names, subs, _ in rows("command")
        for name in re.findall("`([^`]+)`", names)
        for sub in (re.findall("`([^`]+)`", subs) or [""])
    }
    # A token is printed by the group itself.
    there = {path for path, _ in leaves()} - {("token",)}
    assert there - listed == set(), "give these their word in the last table of docs/cli.md"
    assert listed - there == set()


def test_the_exit_codes_are_the_ones_that_are_used() -> None:
    """The table, the help's last line, and the code."""
    table = {int(number): meaning for number, meaning, _ in rows("exit code")}
    assert sorted(table) == sorted(Exit)
    assert all(table.values())
    assert [int(number) for number in re.findall(r"\b(\d+) [a-z]", EPILOG)] == sorted(Exit)


def test_the_templates_are_the_ones_that_there_are() -> None:
    """Their sizes, and what else they say."""
    shown = {}
    for name, vcpus, memory, disk, besides, purpose in rows("template"):
        fields: dict[str, Any] = {
            "vcpus": int(vcpus),
            "memory_mib": int(memory.removesuffix(" MiB")),
            "disk_mib": int(disk.removesuffix(" MiB")),
        }
        for word in filter(None, besides.split(", ")):
            key, _, value = word.partition(" ")
            fields[key] = value or True
        shown[name.strip("`")] = (fields, purpose)
    assert shown == {one.value: (dict(FIELDS[one]), PURPOSES[one]) for one in Template}


def _spans() -> list[str]:
    text = re.sub(r"^```.*?^```$", "", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(span.split()) for span in re.findall(r"`(decisec [^`]+)`", text)]
    return inline + [shlex.join(["decisec", *example.arguments]) for example in commands(PAGE)]


def missing(words: list[str]) -> str:
    """What there is not of a command line, in words; empty if all is there."""
    command: Any = tree()
    options = {"--help"}
    used: set[str] = set()
    for word in itertools.takewhile(lambda word: word not in {"|", "&", "&&", ">"}, words):
        options |= {
            name for param in command.params for name in (*param.opts, *param.secondary_opts)
        }
        below = getattr(command, "commands", {})
        if word in below:
            command = below[word]
        elif re.match(r"-\D", word):
            used.add(word.partition("=")[0])
        elif below and word != "COMMAND" and not used:
            return f"no command {word}"
        if command.name == "flood":
            # The load harness reads the rest.
            return ""
    if used - options:
        return f"no option {', '.join(used - options)}"
    whole = used or "COMMAND" in words or not getattr(command, "commands", {})
    return "" if whole else "no command yet"


@pytest.mark.parametrize("line", sorted(set(_spans())))
def test_what_is_shown_is_there(line: str) -> None:
    """Each command, and each of its options."""
    assert missing(shlex.split(line)[1:]) == ""


@pytest.mark.parametrize("page", [PAGE.parents[1] / "README.md", *sorted(PAGE.parent.glob("*.md"))])
def test_what_other_pages_show_is_there(page: Path) -> None:
    """In sessions with a shell; what they print is theirs."""
    lines = [
        line
        for block in blocks(page, "console")
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    shown = [
        shlex.split(found, comments=True)
        for line in lines
        for found in re.findall(r"(?:^\$ |\$\()(?:\.venv/bin/)?decisec ([a-z-].*?)\)?$", line)
    ]
    assert [(words, complaint) for words in shown if (complaint := missing(words))] == []


@pytest.mark.parametrize("path", [path for path, _ in leaves()], ids=" ".join)
def test_every_command_speaks_to_programs_and_tells_its_codes(path: tuple[str, ...]) -> None:
    """`--json`, and the exit codes at the end of its help; words for each of its options."""
    command = dict(leaves())[path]
    names = {name for param in command.params for name in param.opts}
    assert ("--json" in names) is (path not in NO_DOCUMENT)
    assert path == ("version",) or command.epilog == EPILOG
    assert command.help
    assert all(param.help for param in command.params if param.name != "args")
