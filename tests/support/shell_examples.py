"""Sessions with a shell in documents, run as they stand.

In a `console` fence a line that begins with `$ decisec` is a command, and what follows it, up to
the next one, is what it prints; `[exit code N]` ends that of one that fails. A `toml` fence whose
first line is a comment with a file's name is that file. Other programs' lines are for people.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.doc_examples import blocks, fits
from tests.support.shell import Done

_NAMED = re.compile(r"# ([a-z0-9-]+\.toml)\n")
_CODE = re.compile(r"\[exit code (\d+)\]\n?$")


class ShellExample(NamedTuple):
    """A command in a document, and what it is said to print."""

    line: int
    arguments: tuple[str, ...]
    wanted: str
    code: int


def commands(document: Path) -> Iterator[ShellExample]:
    """All commands of decisec in a document's sessions."""
    for block in blocks(document, "console"):
        found: list[tuple[int, str, list[str]]] = []
        for number, line in enumerate(block.text.splitlines(keepends=True), block.line + 1):
            if line.startswith("$ "):
                found.append((number, line[2:], []))
            elif found:
                found[-1][2].append(line)
        for number, command, output in found:
            words = shlex.split(command)
            if words[0] == "decisec" and "<Tab>" not in command:
                wanted = "".join(output)
                failed = _CODE.search(wanted)
                yield ShellExample(
                    number,
                    tuple(words[1:]),
                    wanted[: failed.start()] if failed else wanted,
                    int(failed[1]) if failed else 0,
                )


def write_files(document: Path, folder: Path) -> None:
    """Put the files that a document shows where its commands look for them."""
    for block in blocks(document, "toml"):
        if named := _NAMED.match(block.text):
            (folder / named[1]).write_text(block.text)


def run_shell(document: Path, run: Callable[..., Done]) -> tuple[int, str]:
    """Run all of them in order; returns how many, and what did not come out as it is shown."""
    wrong: list[str] = []
    examples = list(commands(document))
    for example in examples:
        done = run(*example.arguments)
        printed = done.out + done.err
        if done.code != example.code or not fits(example.wanted, printed):
            wrong.append(
                f"{document.name}:{example.line}: decisec {shlex.join(example.arguments)}\n"
                f"shown, with exit code {example.code}:\n{example.wanted}"
                f"printed, with exit code {done.code}:\n{printed}"
            )
    return len(examples), "\n".join(wrong)
