"""`/v1/models`: what the swarm serves, in OpenAI's form, with node counts and digests beside it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamanet.client.census import ModelView
from llamanet.gateway.gateway import Gateway
from llamanet.gateway.openai import no_such_model
from llamanet.gateway.responses import json_response


async def list_models(request: Request) -> Response:
    """All models."""
    gateway: Gateway = request.app.state.gateway
    views = await gateway.models.listed()
    return json_response({"object": "list", "data": [_model(view) for view in views]})


async def get_model(request: Request) -> Response:
    """One model; 404 if nobody serves it."""
    gateway: Gateway = request.app.state.gateway
    name: str = request.path_params["model"]
    views = {view.name: view for view in await gateway.models.listed()}
    if name not in views:
        raise no_such_model(name, tuple(views))
    return json_response(_model(views[name]))


def _model(view: ModelView) -> dict[str, Any]:
    return {
        "id": view.name,
        "object": "model",
        "created": 0,
        "owned_by": "llamanet",
        "nodes": view.nodes,
        "digests": list(view.digests),
        "n_ctx": view.n_ctx,
        "slots": view.slots,
        "running": view.running,
        "waiting": view.waiting,
    }


routes = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
]
