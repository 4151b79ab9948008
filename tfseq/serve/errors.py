"""What a request is refused with: a gRPC status code, the HTTP status that TF Serving maps it to, and a message."""

from __future__ import annotations

import re

import tensorflow as tf
from grpc import StatusCode

_LONGEST_MESSAGE = 1000  # gRPC sends it in a header, of which 8 KiB are allowed
_CODES = {code.value[0]: code for code in StatusCode}
_HTTP = {
    StatusCode.CANCELLED: 499,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.DEADLINE_EXCEEDED: 504,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.ABORTED: 409,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.UNAUTHENTICATED: 401,
}


class ServingError(Exception):
    """A request that cannot be answered.

    Args:
        code: gRPC's status code.
        message: what was wrong.
        http: HTTP status, where it is not the one of `code` in TF Serving.
    """

    def __init__(self, code: StatusCode, message: str, http: int | None = None):
        super().__init__(message[:_LONGEST_MESSAGE])
        self.code = code
        self.http = http or _HTTP.get(code, 500)


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT, HTTP 400."""
    return ServingError(StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """NOT_FOUND, HTTP 404."""
    return ServingError(StatusCode.NOT_FOUND, message)


def of_tensorflow(error: tf.errors.OpError) -> ServingError:
    """An error of a graph: its own code, and its message without names of nodes."""
    noise = re.compile(r"\[\[|Graph execution error|Detected at node|<stack traces|\d+ (root|derived) error|\(\d+\)")
    lines = [re.sub(r"\s*\[Op:\w+\].*", "", line.strip()) for line in (error.message or "").splitlines()]
    said = " ".join(line for line in lines if line and not noise.match(line))
    return ServingError(_CODES.get(error.error_code, StatusCode.UNKNOWN), said or type(error).__name__)


def internal(error: BaseException) -> ServingError:
    """INTERNAL, HTTP 500: what nobody expected."""
    return ServingError(
        StatusCode.INTERNAL, f"Internal error, {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    )
