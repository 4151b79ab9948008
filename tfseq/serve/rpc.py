"""TF Serving's gRPC API: `Predict`, `GetModelMetadata` and `GetModelStatus` of the official stubs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import tensorflow as tf
from grpc import StatusCode
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfseq.serve import convert
from tfseq.serve.errors import ServingError, internal, invalid
from tfseq.serve.repository import Version
from tfseq.serve.servable import Servable
from tfseq.serve.service import Service, in_thread_if_large

_log = logging.getLogger(__name__)
_ModelVersionStatus = get_model_status_pb2.ModelVersionStatus


def make_server(service: Service) -> grpc.aio.Server:
    """The gRPC side of a service, not yet started."""
    options = [("grpc.max_receive_message_length", service.limits.body), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(service), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(service), server)
    return server


async def _answered(context: grpc.aio.ServicerContext, answer: Callable[[], Awaitable[Any]]) -> Any:
    """What `answer` gives; its errors end the call with their code."""
    try:
        return await answer()
    except ServingError as error:
        refused = error
    except Exception as error:
        _log.exception("unexpected error")
        refused = internal(error)
    await context.abort(refused.code, str(refused))


def _find(service: Service, request: Any) -> tuple[int, Servable]:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return service.repository.find(*_asked(request.model_spec))


def _asked(spec: Any) -> tuple[str, int | None, str | None]:
    """(name, version, label) of a `ModelSpec`."""
    choice = spec.WhichOneof("version_choice")
    return (
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, service: Service):
        self._service = service

    async def Predict(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await _answered(context, lambda: self._predict(request, context.time_remaining()))

    async def _predict(self, request: Any, seconds: float | None) -> Any:
        with self._service.metrics.request("gRPC") as named:
            number, servable = _find(self._service, request)
            named[0] = request.model_spec.name
            signature = servable.signature(request.model_spec.signature_name)
            named[1] = signature.name
            chosen = signature.chosen(request.output_filter)
            inputs = await in_thread_if_large(
                request.ByteSize(), convert.from_protos, request.inputs, signature, self._service.limits.body
            )
            outputs = await self._service.predict(servable, signature, inputs, seconds)
            response = predict_pb2.PredictResponse()
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = number
            response.model_spec.signature_name = signature.name
            for name in chosen:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name], signature.outputs[name].dtype))
            return response

    async def GetModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async def answer() -> Any:
            if not request.metadata_field:
                raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
            for name in request.metadata_field:
                if name != "signature_def":
                    raise invalid(f"Metadata field {name[:100]} is not supported")
            return metadata(request.model_spec.name, *_find(self._service, request))

        return await _answered(context, answer)

    async def Classify(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        await context.abort(StatusCode.UNIMPLEMENTED, "This development server has Predict and GetModelMetadata only.")

    Regress = MultiInference = Classify


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, service: Service):
        self._service = service

    async def GetModelStatus(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async def answer() -> Any:
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            return model_status(self._service.repository.status(*_asked(request.model_spec)))

        return await _answered(context, answer)

    async def HandleReloadConfigRequest(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        await context.abort(StatusCode.UNIMPLEMENTED, "This development server reads models.config again when it changes.")


def model_status(versions: Iterable[Version]) -> Any:
    """`GetModelStatusResponse` of the versions of a model."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in versions:
        status = response.model_version_status.add(version=version.number, state=_ModelVersionStatus.State.Value(version.state))
        status.status.error_code = version.error.code.value[0] if version.error else 0
        status.status.error_message = str(version.error) if version.error else ""
    return response


def metadata(model: str, number: int, servable: Servable) -> Any:
    """`GetModelMetadataResponse` of a version."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = model
    response.model_spec.version.value = number
    response.metadata["signature_def"].Pack(servable.definitions)
    return response
