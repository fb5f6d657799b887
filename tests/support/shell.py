"""The command line as a user has it, and how a command ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from decisec.cli import main


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        assert self.code == 0, self
        return json.loads(self.out)

    @property
    def problem(self) -> dict[str, Any]:
        """The JSON problem on stderr."""
        assert self.out == "", self
        found: dict[str, Any] = json.loads(self.err)
        assert found["exit_code"] == self.code
        return found


class Shell:
    """Calls `decisec` as a user would, in a directory of its own.

    In this process, because starting Python and its libraries takes longer than the command.
    """

    def __init__(
        self, cwd: Path, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self._cwd = cwd
        self._capture = capture
        self._patch = patch

    def __call__(self, *arguments: str, **env: str) -> Done:
        """Run one command line, with these DECISEC_* variables only."""
        self._capture.readouterr()
        with self._patch.context() as patch:
            patch.chdir(self._cwd)
            patch.setenv("NO_COLOR", "1")
            # Contexts of whoever runs the tests are of no concern here.
            patch.setenv("XDG_CONFIG_HOME", str(self._cwd / "config"))
            for name in [name for name in os.environ if name.startswith("DECISEC_")]:
                patch.delenv(name)
            for name, value in env.items():
                patch.setenv(name, value)
            try:
                code = main(list(arguments))
            except SystemExit as ended:  # how the library ends what a shell asked with Tab
                code = int(ended.code or 0)
        out, err = self._capture.readouterr()
        return Done(code, out, err)

    def elsewhere(self, folder: Path) -> Shell:
        """The same in another directory, where no stack runs."""
        return Shell(folder, self._capture, self._patch)
