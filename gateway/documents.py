"""The API's own description: the OpenAPI document, and a page to read and try it.

The page is Swagger UI from files on this machine: people paste tokens into it, so nothing on it
may come from anywhere else, and it works where there is no internet.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Response, Router, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Schema,
    SecurityScheme,
)
from litestar.params import KwargDefinition
from litestar.plugins import OpenAPISchemaPlugin
from litestar.static_files import create_static_files_router
from litestar.typing import FieldDefinition

from gateway.bodies import StrictRequest
from gateway.contract import document

PATH = "/docs"
_ASSETS = f"{PATH}/assets"
_NO_ICON = '<link rel="icon" href="data:,">'


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi_document(request: StrictRequest) -> Response[bytes]:
    """The OpenAPI document; it needs no token."""
    return Response(msgspec.json.encode(document(request.app)), media_type="application/json")


class _Page(SwaggerRenderPlugin):
    """Swagger UI over the same document."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page."""
        del openapi_schema
        return super().render(request, document(request.app))


def assets() -> Router:
    """Swagger UI's files. Its package is a Flask extension, of which only these are of use."""
    folder = metadata.distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")
    return create_static_files_router(path=_ASSETS, directories=[Path(str(folder))])


class Base64(OpenAPISchemaPlugin):
    """How msgspec writes bytes in JSON; Litestar takes them for text."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Whether a field holds bytes."""
        return field_definition.annotation is bytes

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        """A text, and how long it may be: four characters for three bytes."""
        del schema_creator
        kwarg = field_definition.kwarg_definition
        limit_bytes = kwarg.max_length if isinstance(kwarg, KwargDefinition) else None
        return Schema(
            type=OpenAPIType.STRING,
            content_encoding="base64",
            max_length=None if limit_bytes is None else -(-limit_bytes // 3) * 4,
        )


@dataclass
class RawConsole(Operation):
    """A route whose answer can be had as plain bytes, too: what Litestar cannot know of it."""

    def __post_init__(self) -> None:
        """Add them to the answer."""
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse) and answer.content is not None:
            raw = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
            answer.content["text/plain"] = OpenAPIMediaType(schema=raw)
            answer.description = (
                "With `Accept: text/plain` the body is the data itself, and the headers "
                "`Decisec-Offset`, `Decisec-Next-Offset`, `Decisec-End` (true or false) and "
                "`Decisec-Lost-Bytes` tell the rest."
            )


def config() -> OpenAPIConfig:
    """What the document says besides the routes, and how the page shows it."""
    bearer: dict[str, Any] = {
        "type": "http",
        "scheme": "bearer",
        "bearer_format": "JWT",
        "description": (
            "A token of the issuer that this gateway is set to, with the customer and the scopes: "
            "`vms:read`, `vms:write`, `usage:read`; `admin` for operators."
        ),
    }
    page = _Page(
        path="/",
        js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        css_url=f"{_ASSETS}/swagger-ui.css",
        standalone_preset_js_url=f"{_ASSETS}/swagger-ui-standalone-preset.js",
        favicon=_NO_ICON,
    )
    return OpenAPIConfig(
        title="decisec",
        version="1",
        description="MicroVMs on many hosts, metered each 100 ms. Errors are RFC 9457 problems.",
        path=PATH,
        use_handler_docstrings=True,
        render_plugins=[page],
        components=Components(security_schemes={"bearer": SecurityScheme(**bearer)}),
        security=[{"bearer": []}],
    )
