"""`/openapi.json`: what the API takes and answers, made from the models that check it."""

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamanet._version import __version__
from llamanet.gateway import answers, bodies
from llamanet.gateway.responses import json_response

_ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No API key, or a wrong one.",
    "403": "The gateway serves this machine only, or not this origin.",
    "404": "Nobody serves the model; the message says what is served.",
    "408": "The body was not there in time.",
    "413": "The body is too large.",
    "415": "From a browser the body must be JSON.",
    "422": "OpenAI's API has it, and the swarm has not.",
    "429": "All nodes are busy, or the key's limits are reached; `Retry-After` says when to come back.",
    "500": "The gateway failed.",
    "503": "No node answers; `Retry-After` says when to come back.",
}
_QUESTIONS: dict[str, tuple[str, type[BaseModel], type[BaseModel], type[BaseModel] | None]] = {
    "/v1/chat/completions": (
        "Answer a conversation",
        bodies.ChatBody,
        answers.ChatCompletion,
        answers.ChatCompletionChunk,
    ),
    "/v1/completions": ("Continue a text", bodies.CompletionBody, answers.Completion, answers.Completion),
    "/v1/embeddings": ("Embed texts", bodies.EmbeddingBody, answers.EmbeddingList, None),
}
_NODE_HEADERS = {
    "x-llamanet-node": {"schema": {"type": "string"}, "description": "The label of the node that answers."},
    "x-llamanet-hops": {"schema": {"type": "integer"}, "description": "How many nodes were left on the way."},
}


def document() -> dict[str, Any]:
    """The whole of it."""
    models: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = []
    models += [(body, "validation") for _, body, _, _ in _QUESTIONS.values()]
    models += [(model, "serialization") for model in _answered()]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {
        "/v1/models": {"get": _operation("List the models", answers.ModelList, ("401", "403", "503"))},
        "/v1/models/{model}": {
            "get": {
                **_operation("Tell of one model", answers.Model, ("401", "403", "404", "503")),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
            }
        },
    }
    for path, (summary, body, whole, chunk) in _QUESTIONS.items():
        operation = _operation(summary, whole, tuple(_ERRORS))
        operation["responses"]["200"]["headers"] = _NODE_HEADERS
        if chunk is not None:
            # Of its events; a schema of a stream's whole text would say nothing.
            operation["responses"]["200"]["content"]["text/event-stream"] = {
                "schema": {"type": "string"},
                "x-event-data": _ref(chunk),
            }
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
        paths[path] = {"post": operation}
    paths |= _watched()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LlamaNet",
            "version": __version__,
            "description": "OpenAI's API in front of a swarm of llama.cpp nodes.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _watched() -> dict[str, Any]:
    """What is not OpenAI's: for whoever looks after the gateway."""
    health = _operation("Whether the gateway lives", answers.Health, ("403",))
    ready = _operation("Whether it has joined, and a model is served", answers.Ready, ("403", "503"))
    ready["responses"]["503"]["content"] = _json(answers.Unready)
    metrics = _operation("What Prometheus asks for", answers.Health, ("401", "403"))
    metrics["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/health": {"get": {**health, "security": []}},
        "/ready": {"get": {**ready, "security": []}},
        "/metrics": {"get": metrics},
    }


def _answered() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = [answers.Error, answers.Model, answers.ModelList]
    found += [answers.Health, answers.Ready, answers.Unready]
    for _, _, whole, chunk in _QUESTIONS.values():
        found += [model for model in (whole, chunk) if model is not None and model not in found]
    return found


def _operation(summary: str, answer: type[BaseModel], errors: tuple[str, ...]) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": _json(answer)}}
    for status in errors:
        responses[status] = {"description": _ERRORS[status], "content": _json(answers.Error)}
        if status in ("429", "503"):
            responses[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return {"summary": summary, "responses": responses}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(model)}}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


async def get_document(request: Request) -> Response:
    """The document."""
    return json_response(document())


routes = [Route("/openapi.json", get_document, methods=["GET"])]
