"""`decisec admin plan …`: price plans."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json
from decisec.cli.wishes import pairs

if TYPE_CHECKING:
    from schemas.price_plans import PricePlanDetails

app = typer.Typer(help="Look at price plans, enter them, and change prices from a time on.",
                  no_args_is_help=True, epilog=EPILOG)  # fmt: skip

Plan = Annotated[str, typer.Argument(metavar="PLAN", help="Id of the price plan.")]
Prices = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="METER=PRICE[/UNIT]",
        help="As in cpu_ns=0.031/vcpu_hour, mem_kib_ms=0.0065/gib_hour, uptime_ms=0.0042/hour, "
        "net_tx_bytes=0.09/gib. A meter without one costs nothing. Repeatable.",
    ),
]
ValidFrom = Annotated[
    str, typer.Option(metavar="TIME", help="A whole hour (RFC 3339), as 2027-01-01T00:00:00Z.")
]


@app.command("ls", epilog=EPILOG)
def list_plans(
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List the price plans, with what is valid now and what comes next."""
    from decisec.cli.admin_tables import plans_table

    with api_client(api_url, token, state_dir) as client:
        found = list(client.admin.list_price_plans())
    if as_json:
        show_json({"price_plans": found})
    else:
        show(plans_table(found))


@app.command("show", epilog=EPILOG)
def show_plan(
    plan: Plan,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show a price plan with all its versions."""
    from decisec.cli.admin_names import check_name

    check_name("PLAN", plan)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.get_price_plan(plan), as_json)


@app.command(epilog=EPILOG)
def create(
    plan: Plan,
    currency: Annotated[str, typer.Option(help="As in ISO 4217: EUR.")],
    valid_from: ValidFrom,
    price: Prices = None,
    name: Annotated[str, typer.Option(help="For people.", show_default=False)] = "",
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Enter a price plan with its first prices; they may be valid from a time in the past."""
    from decisec.cli.admin_names import check_name, request_of
    from schemas.price_plans import CreatePricePlanRequest

    check_name("PLAN", plan)
    fields: dict[str, object] = {
        "plan_id": plan,
        "name": name,
        "currency": currency,
        "valid_from": _instant(valid_from),
        "prices": _prices(price),
    }
    request = request_of(fields, CreatePricePlanRequest)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.create_price_plan(request), as_json)


@app.command(epilog=EPILOG)
def add(
    plan: Plan,
    valid_from: ValidFrom,
    price: Prices = None,
    generation: Annotated[
        int | None, typer.Option(help="Only while it has so many versions.", show_default=False)
    ] = None,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Add a version: all prices of the plan from a time on that is still to come."""
    from decisec.cli.admin_names import check_name, request_of
    from schemas.price_plans import PriceVersionRequest

    check_name("PLAN", plan)
    fields: dict[str, object] = {"valid_from": _instant(valid_from), "prices": _prices(price)}
    request = request_of(fields, PriceVersionRequest)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.add_price_plan_version(plan, request, generation=generation), as_json)


def _report(plan: PricePlanDetails, as_json: bool) -> None:
    if as_json:
        show_json(plan)
        return
    from decisec.cli.admin_tables import plan_tables

    for table in plan_tables(plan):
        show(table)


def _instant(text: str) -> datetime:
    from decisec.cli.usage import instant

    found = instant("--valid-from", text)
    if found is None:
        raise CommandError("--valid-from: give a time", Exit.USAGE, "usage")
    return found


def _prices(given: list[str] | None) -> dict[str, object]:
    found: dict[str, object] = {}
    for meter, text in pairs("--price", given or []).items():
        price, _, unit = text.partition("/")
        found[meter] = {"price": price, **({"per": unit} if unit else {})}
    return found
