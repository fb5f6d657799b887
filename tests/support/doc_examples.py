"""Examples in documents and docstrings, run as they stand.

A fence says what it is: `pycon` is a session with Python, `console` one with a shell. What was
shortened in the document stands there as `…`.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """What stands in a fence, and the line in which it begins."""

    line: int
    text: str


def blocks(document: Path, language: str) -> list[Block]:
    """All fences of a language."""
    text = document.read_text()
    return [
        Block(text.count("\n", 0, found.start(2)), found[2])
        for found in _FENCE.finditer(text)
        if found[1] == language
    ]


def run_python(document: Path) -> tuple[int, str]:
    """Run a document's sessions with Python as one; returns how many examples, and what was wrong.

    Lines outside fences are left out, so that line numbers stay those of the document.
    """
    lines = [""] * len(document.read_text().splitlines())
    for block in blocks(document, "pycon"):
        for number, line in enumerate(block.text.splitlines(), block.line):
            lines[number] = line
    parser = doctest.DocTestParser()
    test = parser.get_doctest("\n".join(lines), {}, document.name, str(document), 0)
    return _run([test])


def run_docstrings(module: ModuleType, names: Mapping[str, Any]) -> tuple[int, str]:
    """Run the examples in a module's docstrings, each with these names to begin with."""
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=dict(names))
    return _run([test for test in tests if test.examples])


def _run(tests: list[doctest.DocTest]) -> tuple[int, str]:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=_OPTIONS)
    for test in tests:
        runner.run(test, out=said.append)
    return runner.tries, "".join(said)


def fits(wanted: str, got: str) -> bool:
    """Whether an output is what the document shows, `…` standing for anything."""
    checker = doctest.OutputChecker()
    wanted = "\n".join(line.rstrip() for line in wanted.splitlines()).strip() + "\n"
    got = "\n".join(line.rstrip() for line in got.splitlines()).strip() + "\n"
    return checker.check_output(wanted.replace("…", "..."), got, _OPTIONS)
