"""Images: what VMs can be made from."""

from __future__ import annotations

from litestar import Response, get

from gateway.bodies import StrictRequest
from gateway.images import ImageService
from gateway.routes import examples
from gateway.routes.common import answer, who
from schemas.api import ImageList


@get("/images", summary="List images", operation_class=examples.image_list)
async def list_images(request: StrictRequest) -> Response[ImageList]:
    """Images that a VM of yours can be made from at the moment, by name."""
    images: ImageService = request.app.state.images
    return answer(images.all(who(request)))


HANDLERS = (list_images,)
