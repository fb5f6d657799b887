"""`decisec context …`: places that commands can go to, by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli import completions
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json, show_text

if TYPE_CHECKING:
    from decisec.cli.context_file import Context, Contexts

app = typer.Typer(
    help="Name places (API, bus, and as whom) and choose the one that commands go to.",
    no_args_is_help=True,
    epilog=EPILOG,
)

_FILES = ("api_ca", "token_file", "nats_credentials", "nats_ca", "nats_certificate", "nats_key")
_TOKENS = ("token", "token_file", "token_command")

_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
"""User and password of an address, or the token of a bus."""

NewName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the context.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Name of the context.", autocompletion=completions.context_names
    ),
]
ApiUrl = Annotated[str | None, typer.Option(help="Address of the API.", show_default=False)]
ApiCa = Annotated[
    Path | None,
    typer.Option(help="PEM file of the authority of its certificate.", show_default=False),
]
Token = Annotated[
    str | None,
    typer.Option(help="Bearer token, kept in the file; - reads it from stdin.", show_default=False),
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File that holds the token.", show_default=False)
]
TokenCommand = Annotated[
    str | None,
    typer.Option(help="Command line that prints the token.", show_default=False),
]
NatsUrl = Annotated[str | None, typer.Option(help="Address of the bus.", show_default=False)]
NatsCredentials = Annotated[
    Path | None,
    typer.Option(
        "--nats-credentials",
        "--creds",
        help="Credentials of `decisec bus credentials issue`.",
        show_default=False,
    ),
]
NatsCa = Annotated[
    Path | None,
    typer.Option(help="PEM file of the authority of the bus.", show_default=False),
]
NatsCertificate = Annotated[
    Path | None, typer.Option(help="PEM file of the certificate to show.", show_default=False)
]
NatsKey = Annotated[Path | None, typer.Option(help="PEM file of its key.", show_default=False)]
StateDir = Annotated[
    Path | None,
    typer.Option(
        help="State directory of a `decisec dev`, which says the rest while it runs.",
        show_default=False,
    ),
]
Use = Annotated[bool, typer.Option("--use", help="Choose it as well.", show_default=False)]


def _writer(verb: str, doc: str, act: Callable[[Contexts, str, dict[str, str]], Context]) -> None:
    def command(
        name: Name,
        api_url: ApiUrl = None,
        api_ca: ApiCa = None,
        token: Token = None,
        token_file: TokenFile = None,
        token_command: TokenCommand = None,
        nats_url: NatsUrl = None,
        nats_credentials: NatsCredentials = None,
        nats_ca: NatsCa = None,
        nats_certificate: NatsCertificate = None,
        nats_key: NatsKey = None,
        state_dir: StateDir = None,
        use: Use = False,
        as_json: Json = False,
    ) -> None:
        from decisec.cli.context_file import change, path

        given = _given(
            api_url=api_url, api_ca=api_ca, token=token, token_file=token_file,
            token_command=token_command, nats_url=nats_url, nats_credentials=nats_credentials,
            nats_ca=nats_ca, nats_certificate=nats_certificate, nats_key=nats_key,
            state_dir=state_dir,
        )  # fmt: skip

        def write(before: Contexts) -> Contexts:
            return _with(before, name, act(before, name, given), use=use)

        after = change(write)
        chosen = after.current == name
        if as_json:
            show_json({"name": name, "current": chosen, **_masked(after.contexts[name])})
            return
        to_do = "" if chosen else f"; `decisec context use {name}` chooses it"
        show_text(f"{name} is in {path()}{to_do}")

    app.command(verb, help=doc, epilog=EPILOG)(command)


def _add(before: Contexts, name: str, given: dict[str, str]) -> Context:
    from decisec.cli.context_file import Context, check_name

    check_name(name)
    if name in before.contexts:
        raise CommandError(
            f"there is a context {name}: `decisec context set {name}` changes it",
            Exit.USAGE,
            "exists",
        )
    return _made(Context(), given)


_writer(
    "add", "Name a place. The token is best left where it is: in a file, or with a command.", _add
)
_writer(
    "set",
    'Change what is given of a context; "" takes it out.',
    lambda before, name, given: _made(before.named(name), given),
)


@app.command(epilog=EPILOG)
def use(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="The context.", autocompletion=completions.context_names
        ),
    ] = "",
    none: Annotated[
        bool, typer.Option("--none", help="None: back to the stack on .decisec.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Choose the context that commands go to from now on."""
    import msgspec

    from decisec.cli.context_file import change

    if bool(name) is none:
        raise CommandError("give a name, or --none", Exit.USAGE, "usage")

    def act(before: Contexts) -> Contexts:
        if name:
            before.named(name)
        return msgspec.structs.replace(before, current=name)

    change(act)
    if as_json:
        show_json({"current": name or None})
    else:
        show_text(f"commands go to {name}" if name else "no context is chosen")


@app.command("ls", epilog=EPILOG)
def list_contexts(as_json: Json = False) -> None:
    """List the contexts; the one that commands go to has a star."""
    from decisec.cli.chosen import DEFAULT_STATE, context
    from decisec.cli.context_file import read

    found = read()
    here = context(DEFAULT_STATE)
    current = here[0] if here else None
    if as_json:
        rows = [{"name": name, **_masked(one)} for name, one in sorted(found.contexts.items())]
        show_json({"current": current, "contexts": rows})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in ("", "name", "API", "bus", "token", "state directory"):
        table.add_column(heading, no_wrap=True)
    for name, one in sorted(found.contexts.items()):
        shown = _masked(one)
        cells = (
            "*" if name == current else "",
            name,
            shown.get("api_url", "-"),
            shown.get("nats_url", "-"),
            _token_words(one),
            one.state_dir or "-",
        )
        table.add_row(*map(Text, cells))
    show(table)


@app.command("show", epilog=EPILOG)
def show_context(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="The context; without, the one that commands go to.",
            autocompletion=completions.context_names,
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Show a context; what is secret in it stays hidden."""
    from decisec.cli.chosen import DEFAULT_STATE, context
    from decisec.cli.context_file import path, read

    here = (name, read().named(name)) if name else context(DEFAULT_STATE)
    if here is None:
        raise CommandError(
            "no context is chosen: `decisec context use NAME`", Exit.NOT_FOUND, "no_context"
        )
    masked = _masked(here[1])
    if as_json:
        show_json({"name": here[0], **masked})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for key, value in {"name": here[0], **masked, "file": str(path())}.items():
        table.add_row(key, Text(value))
    show(table)


@app.command("rm", epilog=EPILOG)
def remove(name: Name, as_json: Json = False) -> None:
    """Forget a context. If commands go to it, they go back to the stack on .decisec."""
    import msgspec

    from decisec.cli.context_file import change

    def act(before: Contexts) -> Contexts:
        before.named(name)
        left = {other: one for other, one in before.contexts.items() if other != name}
        current = "" if before.current == name else before.current
        return msgspec.structs.replace(before, current=current, contexts=left)

    after = change(act)
    if as_json:
        show_json({"removed": name, "current": after.current or None})
    else:
        show_text(f"removed {name}" + ("" if after.current else "; no context is chosen"))


@app.command(epilog=EPILOG)
def rename(name: Name, to: NewName, as_json: Json = False) -> None:
    """Give a context another name."""
    import msgspec

    from decisec.cli.context_file import change, check_name

    check_name(to)

    def act(before: Contexts) -> Contexts:
        one = before.named(name)
        if to in before.contexts:
            raise CommandError(f"there is a context {to}", Exit.USAGE, "exists")
        left = {other: kept for other, kept in before.contexts.items() if other != name}
        current = to if before.current == name else before.current
        return msgspec.structs.replace(before, current=current, contexts={**left, to: one})

    after = change(act)
    if as_json:
        show_json({"name": to, "current": after.current or None})
    else:
        show_text(f"{name} is {to}")


def _given(**options: str | Path | None) -> dict[str, str]:
    """What was given, with paths that hold wherever commands are run later."""
    found: dict[str, str] = {}
    for key, value in options.items():
        if value is None:
            continue
        # Path("") is ".": it was given to take the field out.
        if isinstance(value, Path):
            found[key] = "" if value == Path() else str(value.expanduser().absolute())
        else:
            found[key] = value
    if found.get("token") == "-":
        found["token"] = sys.stdin.readline().strip()
        if not found["token"]:
            raise CommandError("--token -: stdin holds none", Exit.USAGE, "usage")
    for key in ("api_url", "nats_url"):
        _check_url(key, found.get(key, ""))
    for key in _FILES:
        if found.get(key) and not Path(found[key]).is_file():
            raise CommandError(
                f"--{key.replace('_', '-')}: no file {found[key]}", Exit.USAGE, "usage"
            )
    return found


def _check_url(key: str, url: str) -> None:
    kinds = ("http", "https") if key == "api_url" else ("nats", "tls", "ws", "wss")
    if url and not all(one.partition("://")[0] in kinds for one in url.split(",")):
        wanted = " or ".join(f"{kind}://" for kind in kinds[:2])
        raise CommandError(
            f"--{key.replace('_', '-')}: an address begins with {wanted}", Exit.USAGE, "usage"
        )


def _made(before: Context, given: dict[str, str]) -> Context:
    """A context with what is given; a token in one place only."""
    import msgspec

    tokens = [key for key in _TOKENS if given.get(key)]
    if len(tokens) > 1:
        names = " and ".join(f"--{key.replace('_', '-')}" for key in tokens)
        raise CommandError(f"{names}: one of them", Exit.USAGE, "usage")
    cleared = dict.fromkeys(_TOKENS, "") if tokens else {}
    made = msgspec.structs.replace(before, **{**cleared, **given})
    if not (made.api_url or made.nats_url or made.state_dir):
        raise CommandError(
            "give --api-url, --nats-url or --state-dir: the context would lead nowhere",
            Exit.USAGE,
            "usage",
        )
    return made


def _with(before: Contexts, name: str, made: Context, *, use: bool) -> Contexts:
    import msgspec

    return msgspec.structs.replace(
        before,
        current=name if use else before.current,
        contexts={**before.contexts, name: made},
    )


def _masked(one: Context) -> dict[str, str]:
    """What may be shown: no token, no password of an address, no argument of a command."""
    import msgspec

    found: dict[str, str] = {}
    for key, value in msgspec.structs.asdict(one).items():
        if key == "token" and value:
            found[key] = "(hidden)"
        elif key == "token_command" and value:
            first, *others = value.split()
            found[key] = f"{first} (arguments hidden)" if others else first
        elif value:
            found[key] = _USER.sub("(hidden)", value)
    return found


def _token_words(one: Context) -> str:
    if one.token:
        return "kept in the file"
    if one.token_file:
        return one.token_file
    return f"by {one.token_command.split()[0]}" if one.token_command else "-"
