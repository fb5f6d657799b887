"""`decisec admin customer …`: entries of customers."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json
from decisec.cli.wishes import pairs

if TYPE_CHECKING:
    from schemas.admin_customers import CustomerDetails

app = typer.Typer(help="Look at customers, enter, change, suspend and close them.",
                  no_args_is_help=True, epilog=EPILOG)  # fmt: skip

DEFAULT = "default"


class Status(StrEnum):
    """What a customer may do."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSED = "closed"


Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="Name of the customer.")]
Pool = Annotated[str, typer.Option(help="Pool of new VMs.", show_default=False)]
Plan = Annotated[str, typer.Option("--plan", help="Price plan of new VMs.", show_default=False)]
Quota = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=AMOUNT",
        help="vms, vcpus, memory_mib, disk_mib or snapshots, and how much; `default` for what "
        "everybody has. Repeatable.",
    ),
]
Rates = Annotated[
    list[str] | None,
    typer.Option(
        "--rate",
        metavar="CLASS=PER_S[/BURST]",
        help="reads, mutations or expensive: requests a second, and at once; `default` for what "
        "the gateways give everybody, 0 for no limit. Repeatable.",
    ),
]
Generation = Annotated[
    int | None,
    typer.Option(help="Only if the customer still stands at this one.", show_default=False),
]


@app.command("ls", epilog=EPILOG)
def list_customers(
    status: Annotated[
        Status | None, typer.Option(help="Only customers so.", show_default=False)
    ] = None,
    pool: Annotated[str, typer.Option(help="Only of this pool.", show_default=False)] = "",
    plan: Annotated[str, typer.Option(help="Only with this price plan.", show_default=False)] = "",
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List the customers that have an entry, closed ones included."""
    from decisec.cli.admin_tables import customers_table
    from schemas.hosts import CustomerStatus

    wanted = CustomerStatus(status.value) if status is not None else None
    with api_client(api_url, token, state_dir) as client:
        found = list(client.admin.list_customers(status=wanted, pool=pool, price_plan=plan))
    if as_json:
        show_json({"customers": found})
    else:
        show(customers_table(found))


@app.command("show", epilog=EPILOG)
def show_customer(
    customer: Customer,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show a customer, and what is used of the quota."""
    from decisec.cli.admin_names import check_name

    check_name("CUSTOMER", customer)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.get_customer(customer), as_json)


@app.command(epilog=EPILOG)
def create(
    customer: Customer,
    pool: Pool = "",
    plan: Plan = "",
    quota: Quota = None,
    rate: Rates = None,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Give a customer an entry; what is not said is as for everybody."""
    from decisec.cli.admin_names import check_name, request_of
    from schemas.admin_customers import CreateCustomerRequest

    check_name("CUSTOMER", customer)
    given = {name: value for name, value in (("pool", pool), ("price_plan", plan)) if value}
    fields = {"customer_id": customer, **given, **_quota(quota), **_rates(rate)}
    request = request_of(fields, CreateCustomerRequest)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.create_customer(request), as_json)


@app.command("set", epilog=EPILOG)
def change(
    customer: Customer,
    pool: Pool = "",
    plan: Plan = "",
    quota: Quota = None,
    rate: Rates = None,
    generation: Generation = None,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Change what is named; `default` is what everybody has. Gateways go by it within a second."""
    from decisec.cli.admin_names import check_name, request_of
    from schemas.admin_customers import CustomerPatch

    check_name("CUSTOMER", customer)
    given = {name: value for name, value in (("pool", pool), ("price_plan", plan)) if value}
    fields = {**given, **_quota(quota), **_rates(rate)}
    if not fields:
        raise CommandError(
            "nothing to change: give --pool, --plan, --quota or --rate", Exit.USAGE, "usage"
        )
    patch = request_of(fields, CustomerPatch)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.patch_customer(customer, patch, generation=generation), as_json)


@app.command(epilog=EPILOG)
def suspend(
    customer: Customer,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Let a customer look, stop and delete, and make or start nothing. VMs that run go on."""
    from decisec.cli.admin_names import check_name

    check_name("CUSTOMER", customer)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.suspend_customer(customer), as_json)


@app.command(epilog=EPILOG)
def resume(
    customer: Customer,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Let a suspended or closed customer make and start things again."""
    from decisec.cli.admin_names import check_name

    check_name("CUSTOMER", customer)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.resume_customer(customer), as_json)


@app.command(epilog=EPILOG)
def close(
    customer: Customer,
    generation: Generation = None,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Close a customer of whom no VM and no snapshot is left; bills are answered as before."""
    from decisec.cli.admin_names import check_name

    check_name("CUSTOMER", customer)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.close_customer(customer, generation=generation), as_json)


def _report(customer: CustomerDetails, as_json: bool) -> None:
    if as_json:
        show_json(customer)
        return
    from decisec.cli.admin_tables import customer_table

    show(customer_table(customer))


def _quota(given: list[str] | None) -> dict[str, Any]:
    if not given:
        return {}
    try:
        amounts = {
            name: None if text == DEFAULT else int(text)
            for name, text in pairs("--quota", given).items()
        }
    except ValueError:
        raise CommandError(
            "--quota: give NAME=AMOUNT, a whole number or `default`", Exit.USAGE, "usage"
        ) from None
    return {"quota": amounts}


def _rates(given: list[str] | None) -> dict[str, Any]:
    if not given:
        return {}
    return {"rates": {name: _rate(text) for name, text in pairs("--rate", given).items()}}


def _rate(text: str) -> dict[str, float | int] | None:
    if text == DEFAULT:
        return None
    per_s, _, burst = text.partition("/")
    try:
        return {"per_s": float(per_s), **({"burst": int(burst)} if burst else {})}
    except ValueError:
        raise CommandError(
            "--rate: give CLASS=PER_S or CLASS=PER_S/BURST, as in mutations=5/20",
            Exit.USAGE,
            "usage",
        ) from None
