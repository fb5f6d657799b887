"""`decisec bus …`: the server's configuration, and who has which credentials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from decisec.bus.folder import BusFolder
    from decisec.bus.registry import Credential

app = typer.Typer(
    help="The bus: its server, TLS, who has which credentials, and what is said on it.",
    no_args_is_help=True,
    epilog=EPILOG,
)
credentials = typer.Typer(
    help="Issue, revoke and list credentials for the bus.", no_args_is_help=True, epilog=EPILOG
)
app.add_typer(credentials, name="credentials")

_GIB = 1024**3

Folder = Annotated[
    Path,
    typer.Option(
        "--dir",
        envvar="DECISEC_BUS_DIR",
        help="Folder of the server's configuration; keep it to its owner.",
        file_okay=False,
    ),
]
NoReload = Annotated[
    bool,
    typer.Option(
        "--no-reload",
        help="Do not tell the server: for a folder that is copied to where it runs.",
        show_default=False,
    ),
]
DEFAULT_FOLDER = Path("/etc/decisec/bus")


@app.command(epilog=EPILOG)
def init(
    folder: Folder = DEFAULT_FOLDER,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where clients connect.")
    ] = "0.0.0.0:4222",
    monitor: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where this machine asks the server how it is.")
    ] = "127.0.0.1:8222",
    name: Annotated[str, typer.Option(help="Name of the server, one of its own each.")] = "n1",
    tls_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name or address by which clients reach it; may be repeated.",
            show_default="localhost, 127.0.0.1",
        ),
    ] = None,
    store_dir: Annotated[
        Path | None,
        typer.Option(help="Where its streams are.", show_default="jetstream in the folder"),
    ] = None,
    max_storage_gib: Annotated[
        int, typer.Option(min=1, help="What all streams may take together, on this server.")
    ] = 32,
    replicas: Annotated[
        int,
        typer.Option(min=1, max=5, help="Copies of each stream, in a cluster of servers."),
    ] = 1,
    client_certificates: Annotated[
        bool,
        typer.Option(
            "--client-certificates",
            help="Let only clients in that show a certificate of this authority, too.",
            show_default=False,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a server's configuration, with a certificate authority unless `tls/` has files."""
    from decisec.bus.folder import BusFolder, BusSettings

    bus = BusFolder(folder)
    bus.init(
        BusSettings(
            server_name=name,
            listen=listen,
            monitor=monitor,
            store_dir=str((store_dir or bus.root / "jetstream").absolute()),
            max_storage_bytes=max_storage_gib * _GIB,
            replicas=replicas,
            client_certificates=client_certificates,
        ),
        tls_host or ["localhost", "127.0.0.1"],
    )
    if as_json:
        show_json({"config": str(bus.config), "authority": str(bus.authority)})
        return
    show(f"made {bus.config}; start it: nats-server -c {bus.config}")
    show(f"clients trust {bus.authority}: DECISEC_NATS_CA")
    show(f"next: decisec bus credentials issue operator ops --dir {folder}")


@app.command(epilog=EPILOG)
def config(
    folder: Folder = DEFAULT_FOLDER, no_reload: NoReload = False, as_json: Json = False
) -> None:
    """Make the configuration anew, as after an update of decisec, and have the server go by it."""
    bus = _folder(folder)
    bus.write_config()
    told = _tell_server(bus, no_reload=no_reload)
    if as_json:
        show_json({"config": str(bus.config), "reloaded": told})
        return
    show(f"made {bus.config}")
    _say(told, no_reload=no_reload)


@app.command(epilog=EPILOG)
def reload(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Have the server on this machine read its configuration again."""
    bus = _folder(folder)
    if not bus.reload():
        raise CommandError(
            f"no server runs by {folder}: start it (nats-server -c {bus.config}), or run this on "
            "its machine",
            Exit.UNREACHABLE,
            "not_running",
        )
    if as_json:
        show_json({"config": str(bus.config), "reloaded": True})
        return
    show("the server goes by its configuration")


@app.command(epilog=EPILOG)
def certificate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the files to make.")],
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name or address of a server; may be repeated."),
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Make a certificate of the folder's own authority, for a server or a client."""
    made, key = _folder(folder).certificate(name, host or ())
    if as_json:
        show_json({"certificate": str(made), "key": str(key)})
        return
    show(f"made {made} and {key}")


@credentials.command(epilog=EPILOG)
def issue(
    role: Annotated[
        str,
        typer.Argument(
            metavar="ROLE", help="gateway, collector, batcher, operator, agent or customer."
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The host of an agent, the customer of a service; else what tells one apart.",
        ),
    ],
    public_key: Annotated[
        str,
        typer.Option(metavar="U...", help="Of a seed that was made, and stays, elsewhere."),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Where to write them.",
            show_default="credentials/ in the folder",
        ),
    ] = None,
    show_seed: Annotated[
        bool,
        typer.Option("--show-seed", help="Print the secret as well.", show_default=False),
    ] = False,
    folder: Folder = DEFAULT_FOLDER,
    no_reload: NoReload = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Issue credentials: a file of mode 0600, good as soon as the server has heard of them."""
    bus = _folder(folder)
    issued, seed = bus.issue(role, name, public_key=public_key, out=out)
    told = _tell_server(bus, no_reload=no_reload)
    if as_json:
        show_json(
            {
                **_row(issued.credential),
                "inbox_prefix": issued.inbox_prefix,
                "path": issued.path,
                "reloaded": told,
                **({"seed": seed} if show_seed and seed else {}),
            }
        )
        return
    show(f"{role} {name}: {issued.credential.public_key}")
    if issued.path:
        show(f"credentials: {issued.path}")
    show(f"inbox prefix: {issued.inbox_prefix}")
    if show_seed and seed:
        show(seed)
    _say(told, no_reload=no_reload)


@credentials.command(epilog=EPILOG)
def revoke(
    which: Annotated[
        list[str],
        typer.Argument(metavar="KEY | ROLE NAME", help="A public key, or a role and a name."),
    ],
    every: Annotated[
        bool,
        typer.Option("--all", help="All of this role and name.", show_default=False),
    ] = False,
    folder: Folder = DEFAULT_FOLDER,
    no_reload: NoReload = False,
    as_json: Json = False,
) -> None:
    """Take credentials back: whoever uses them is thrown out at once."""
    bus = _folder(folder)
    revoked = bus.revoke(_keys_of(bus, which, every=every))
    told = _tell_server(bus, no_reload=no_reload)
    if as_json:
        show_json({"revoked": [_row(one) for one in revoked], "reloaded": told})
    else:
        for one in revoked:
            show(f"revoked {one.role} {one.name}: {one.public_key}")
        _say(told, no_reload=no_reload)
    if not told and not no_reload:
        raise CommandError(
            f"no server runs by {folder}: where one does, they are good until it has these files "
            "and was told (`decisec bus reload`)",
            Exit.UNREACHABLE,
            "not_running",
        )


@credentials.command("ls", epilog=EPILOG)
def list_credentials(
    folder: Folder = DEFAULT_FOLDER,
    every: Annotated[
        bool, typer.Option("--all", help="Revoked ones, too.", show_default=False)
    ] = False,
    as_json: Json = False,
) -> None:
    """List who has credentials. No secret is shown: there is none here."""
    found = [one for one in _folder(folder).registry.credentials if one.good or every]
    if as_json:
        show_json({"credentials": [_row(one) for one in found]})
        return
    from rich.table import Table

    table = Table()
    for heading in ("role", "name", "public key", "issued", "revoked"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        revoked = f"{one.revoked_at:%Y-%m-%d %H:%M}" if one.revoked_at else "-"
        table.add_row(
            one.role, one.name, one.public_key, f"{one.issued_at:%Y-%m-%d %H:%M}", revoked
        )
    show(table)


def _folder(path: Path) -> BusFolder:
    from decisec.bus.folder import BusFolder

    return BusFolder(path)


def _keys_of(bus: BusFolder, which: list[str], *, every: bool) -> list[str]:
    match which:
        case [key]:
            return [key]
        case [role, name]:
            found = [o.public_key for o in bus.registry.good if (o.role, o.name) == (role, name)]
            if not found:
                raise CommandError(
                    f"no credentials of {role} {name} are good", Exit.NOT_FOUND, "not_found"
                )
            if len(found) > 1 and not every:
                raise CommandError(
                    f"{role} {name} has {len(found)} credentials: name one by its public key, or "
                    "give --all",
                    Exit.USAGE,
                    "ambiguous",
                )
            return found
        case _:
            raise CommandError("give a public key, or a role and a name", Exit.USAGE, "usage")


def _tell_server(bus: BusFolder, *, no_reload: bool) -> bool:
    return not no_reload and bus.reload()


def _say(told: bool, *, no_reload: bool) -> None:
    if told:
        show("the server goes by it")
    elif no_reload:
        show("the server was not told: copy the folder, then `decisec bus reload` there")
    else:
        show("no server runs by this folder yet")


def _row(one: Credential) -> dict[str, str | None]:
    return {
        "role": one.role,
        "name": one.name,
        "public_key": one.public_key,
        "issued_at": one.issued_at.isoformat(),
        "revoked_at": one.revoked_at.isoformat() if one.revoked_at else None,
    }
