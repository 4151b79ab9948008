"""TF Serving's REST API: https://www.tensorflow.org/tfx/serving/api_rest; health, metrics and the page beside it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from google.protobuf.json_format import MessageToDict
from grpc import StatusCode
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tfseq.serve import convert
from tfseq.serve.errors import ServingError, internal, invalid
from tfseq.serve.rpc import model_status
from tfseq.serve.servable import Servable
from tfseq.serve.service import Service, in_thread_if_large

_log = logging.getLogger(__name__)
_PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # else a browser keeps the page of an older tfseq
}
_MODEL = r"/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?"
_GET = re.compile(_MODEL + "(/metadata)?", re.IGNORECASE)
_POST = re.compile(_MODEL + ":(predict|classify|regress)", re.IGNORECASE)


def make_app(service: Service) -> Starlette:
    """The HTTP side of a service."""

    async def api(request: Request) -> Response:
        return await _answer(service, request)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "SERVING"})

    async def readyz(_: Request) -> Response:
        ready = service.ready()
        return JSONResponse({"ready": ready, "models": service.repository.models()}, 200 if ready else 503)

    async def models(_: Request) -> Response:
        served = service.repository.models()
        listed = [{"name": n, "versions": v, "labels": service.repository.labels(n)} for n, v in served.items()]
        return JSONResponse({"models": listed})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]
    return Starlette(
        routes=[
            Route("/v1/{path:path}", api, methods=methods),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/models", models),
            Route("/metrics", metrics),
            Route("/monitoring/prometheus/metrics", metrics),  # where TF Serving has it by default
            Mount("/", _Page(directory=_PAGE, html=True)),
        ]
    )


class _Page(StaticFiles):
    """The files of the page, which may load nothing from elsewhere."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_PAGE_HEADERS)
        return response


async def _answer(service: Service, request: Request) -> Response:
    """The answer to a request under /v1, also where it is an error."""
    try:
        path = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0]
        post = _POST.fullmatch(path) if request.method == "POST" else None
        get = _GET.fullmatch(path) if request.method == "GET" else None
        found = post or get
        if found is None or (post and not post[1]) or (get and not get[1] and (get[2] or get[3] or get[4])):
            raise invalid(f"Malformed request: {request.method} {path[:200]}")
        name, label = (unquote(part) if part else None for part in (found[1], found[3]))
        if found[2] and (len(found[2]) > 19 or int(found[2]) >= 1 << 63):
            raise invalid(f"Failed to convert version: {found[2][:30]} to numeric.")
        version = int(found[2]) if found[2] else None
        if post:
            with service.metrics.request("REST") as named:
                body = await _read(request, service)
                answer = _predict(service, found[4].lower(), name or "", version, label, body, named)
                return await _unless_gone(request, answer)
        if found[4]:
            number, servable = service.repository.find(name or "", version, label)
            return _json(_metadata(name or "", number, servable))
        status = model_status(service.repository.status(name or "", version, label))
        return _json(MessageToDict(status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
    except ServingError as error:
        return _json({"error": str(error)}, error.http)
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception as error:
        _log.exception("unexpected error")
        return _json({"error": str(internal(error))}, 500)


async def _read(request: Request, service: Service) -> bytes:
    """The body, no longer and no later than allowed."""
    most = service.limits.body
    too_large = ServingError(StatusCode.RESOURCE_EXHAUSTED, f"The request body is larger than {most} bytes.", http=413)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > most):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(service.limits.seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        message = f"The request body did not arrive within {service.limits.seconds:.3g} seconds."
        raise ServingError(StatusCode.DEADLINE_EXCEEDED, message, http=408) from None
    return bytes(body)


async def _unless_gone(request: Request, answer: Awaitable[Response]) -> Response:
    """What answers a request whose body was read; it is cancelled, and ClientDisconnect raised, once the client is gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def _predict(
    service: Service, method: str, model: str, version: int | None, label: str | None, body: bytes, named: list[str]
) -> Response:
    document = await in_thread_if_large(len(body), convert.parse, body)
    asked = convert.signature_name(document)
    _, servable = service.repository.find(model, version, label)
    named[0] = model
    if (asked or "serving_default") not in servable.signatures:
        raise invalid(f'Serving signature name: "{(asked or "serving_default")[:100]}" not found in signature def')
    signature = servable.signature(asked)
    named[1] = signature.name
    if method != "predict":
        raise _unsupported(method, signature.method)
    inputs, rows = await in_thread_if_large(len(body), convert.from_json, document, signature)
    outputs = await service.predict(servable, signature, inputs)
    size = sum(value.nbytes for value in outputs.values())
    return Response(await in_thread_if_large(size, convert.to_json, outputs, rows), media_type="application/json")


def _unsupported(method: str, of_signature: str) -> ServingError:
    """Why there is no `classify` or `regress`: as TF Serving says it, whose signatures for them take serialised Examples."""
    kind = {"classify": "classification", "regress": "regression"}[method]
    wanted = f"tensorflow/serving/{method}"
    if of_signature != wanted:
        return invalid(f"Expected {kind} signature method_name to be {wanted}. Was: {of_signature}")
    return ServingError(StatusCode.UNIMPLEMENTED, f"This development server has no {method}; use predict, or tensorflow/serving.")


def _metadata(model: str, number: int, servable: Servable) -> dict[str, Any]:
    """As JSON, with every field, as TF Serving prints it."""
    spec = {"name": model, "signature_name": "", "version": str(number)}
    definitions = MessageToDict(servable.definitions, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {"model_spec": spec, "metadata": {"signature_def": definitions}}


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, indent=1), status, media_type="application/json")
