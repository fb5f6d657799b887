"""`decisec admin …`: the operators' API, for tokens with the scope `admin`."""

from __future__ import annotations

import typer

from decisec.cli import admin_customers, admin_hosts, admin_plans
from decisec.cli.exits import EPILOG

app = typer.Typer(
    help="Customers, price plans and hosts by the API, with an operator's token.",
    no_args_is_help=True,
    epilog=EPILOG,
)
app.add_typer(admin_customers.app, name="customer")
app.add_typer(admin_plans.app, name="plan")
app.add_typer(admin_hosts.app, name="host")
