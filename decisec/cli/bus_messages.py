"""`decisec bus subjects`, `schema` and `asyncapi`: what is said on the bus, and who may."""

from __future__ import annotations

from typing import Annotated

import typer

from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=EPILOG)(subjects)
    app.command(epilog=EPILOG)(schema)
    app.command(epilog=EPILOG)(asyncapi)


def subjects(
    role: Annotated[
        str,
        typer.Option(
            metavar="ROLE", help="Only what this role may do: gateway, agent, customer, …",
            show_default=False,
        ),
    ] = "",
    as_json: Json = False,
) -> None:  # fmt: skip
    """List every subject, what is said on it, and who may say and hear it. Asks no server."""
    from decisec.bus.roles import shipped
    from decisec.messages.document import document
    from decisec.messages.lookup import lines

    names = shipped().names
    if role and role not in names:
        raise CommandError(
            f"there is no role {role}: {', '.join(names)}", Exit.NOT_FOUND, "not_found"
        )
    found = list(lines(document(), role))
    if as_json:
        show_json({"subjects": [line._asdict() for line in found]})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("subject", no_wrap=True)
    for heading in ("says", "may say", "may hear", "kept in"):
        table.add_column(heading)
    for line in found:
        table.add_row(
            escape(line.subject),
            ", ".join(line.messages),
            ", ".join(line.send),
            ", ".join(line.receive),
            line.kept,
        )
    show(table)


def schema(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="A message, or a subject on which it is said. Left out: a list.",
            show_default=False,
        ),
    ] = "",
    example: Annotated[
        bool, typer.Option("--example", help="An example instead.", show_default=False)
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Print the JSON Schema of a message, whole, or an example. Asks no server."""
    from decisec.messages.document import document
    from decisec.messages.lookup import named, whole

    made = document()
    if not name:
        _list_messages(made["components"]["messages"], as_json=as_json)
        return
    message = named(made, name)
    if message is None:
        raise CommandError(
            f"there is no message and no subject {name}: `decisec bus schema` and "
            "`decisec bus subjects` list them",
            Exit.NOT_FOUND,
            "not_found",
        )
    if example:
        if "examples" not in message:
            raise CommandError(f"{message['name']} has no JSON in it", Exit.NOT_FOUND, "not_found")
        show_json(message["examples"][0]["payload"])
        return
    show_json(whole(made, message["payload"]))


def asyncapi() -> None:
    """Print the AsyncAPI document of the bus: all subjects, messages and roles in one."""
    from decisec.messages.document import document

    show_json(document())


def _list_messages(messages: dict[str, dict[str, str]], *, as_json: bool) -> None:
    listed = [
        {"name": name, "summary": one["summary"], "content_type": one.get("contentType", "")}
        for name, one in sorted(messages.items())
    ]
    if as_json:
        show_json({"messages": listed})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("message", no_wrap=True)
    table.add_column("is")
    for one in listed:
        table.add_row(one["name"], escape(one["summary"]))
    show(table)
