"""The file of contexts: named places that commands can go to, and the one that is chosen.

`$XDG_CONFIG_HOME/decisec/contexts.toml` (`~/.config` by default), or what DECISEC_CONTEXTS names.
It may hold tokens: it is written as a whole or not at all, for its owner only, by one command at
a time, and is not read if a token in it could be read by others.
"""

from __future__ import annotations

import fcntl
import os
import re
import tomllib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import msgspec

from decisec.cli.exits import CommandError, Exit

FILE_VARIABLE = "DECISEC_CONTEXTS"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)


class Context(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """A place and who asks there.

    Attributes:
        api_url: Address of the API.
        api_ca: PEM file of the authority that its certificate comes from.
        token: Bearer token itself; at most one of the three is set.
        token_file: File that holds it.
        token_command: Command line that prints it.
        nats_url: Address of the bus; the other `nats_` fields are as in the services' settings.
        state_dir: State directory of a `decisec dev`, which says all this while it runs.
    """

    api_url: str = ""
    api_ca: str = ""
    token: str = ""
    token_file: str = ""
    token_command: str = ""
    nats_url: str = ""
    nats_credentials: str = ""
    nats_ca: str = ""
    nats_certificate: str = ""
    nats_key: str = ""
    state_dir: str = ""

    def __repr__(self) -> str:
        """Without what is in it: a token, or a word of a command, may be a secret."""
        return "Context(...)"


class Contexts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of the file."""

    current: str = ""
    contexts: dict[str, Context] = msgspec.field(default_factory=dict)

    def named(self, name: str) -> Context:
        """One of them.

        Raises:
            CommandError: There is none of this name.
        """
        try:
            return self.contexts[name]
        except KeyError:
            near = get_close_matches(name, self.contexts, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise CommandError(
                f"no context has the name {name!r}: {hint}`decisec context ls` shows them, "
                "`decisec context add` makes one",
                Exit.NOT_FOUND,
                "no_context",
            ) from None


def path() -> Path:
    """Where the file is, whether or not it is there."""
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return Path(named)
    # The XDG specification: a relative path there is to be ignored.
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    folder = configured if configured.is_absolute() else Path("~/.config").expanduser()
    return folder / "decisec" / "contexts.toml"


def read() -> Contexts:
    """All contexts; none if there is no file.

    Raises:
        CommandError: The file is no such one, or others may read a token in it.
    """
    file = path()
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read()
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", Exit.USAGE, "bad_contexts") from error
    try:
        found = msgspec.convert(tomllib.loads(content.decode()), Contexts)
    except (ValueError, msgspec.ValidationError) as error:
        raise CommandError(
            f"{file}: not a file of contexts: {error}. Mend it, or remove it and add them anew",
            Exit.USAGE,
            "bad_contexts",
        ) from error
    if mode & 0o077 and any(one.token for one in found.contexts.values()):
        raise CommandError(
            f"{file}: others may read the tokens in it: chmod 600 {file}",
            Exit.USAGE,
            "bad_contexts",
        )
    return found


def change(act: Callable[[Contexts], Contexts]) -> Contexts:
    """Put what `act` makes of the contexts in their place; of several at once one by one.

    Raises:
        CommandError: The file cannot be read or written, or `act` refuses.
    """
    from decisec.cli.toml_text import to_toml
    from decisec.dev.state import write_private

    file = path()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The folder, since the file itself is another one after each change.
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            changed = act(read())
            write_private(file.resolve(), to_toml(msgspec.to_builtins(changed)).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CommandError(
            f"{error.filename or file}: {error.strerror}", Exit.FAILED, "failed"
        ) from error
    return changed


def check_name(name: str) -> None:
    """See to it that a name can be one.

    Raises:
        CommandError: It cannot.
    """
    if not NAME.fullmatch(name):
        raise CommandError(
            f"{name[:80]!r} is no name: letters, digits, '-', '_' and '.', 63 at most",
            Exit.USAGE,
            "usage",
        )
