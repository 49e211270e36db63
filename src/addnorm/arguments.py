"""The arguments of ``addnorm::forward`` and ``addnorm::backward``: the fields of `Call` and `Gradient`, in their order,
and a few switches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .call import CALL_FIELDS, GRADIENT_FIELDS, Call, Gradient, stored_dtype

FORWARD_ARGUMENTS = (*CALL_FIELDS[:4], "keep_stream", "keep_stats", *CALL_FIELDS[4:], "backend")
BACKWARD_ARGUMENTS = (*GRADIENT_FIELDS, "backend")


def forward_arguments(arguments: Iterable[Any]) -> dict[str, Any]:
    """The arguments of ``addnorm::forward`` by name. Those at the end that have their default may be missing."""
    return dict(zip(FORWARD_ARGUMENTS, arguments, strict=False))


def as_call(given: dict[str, Any]) -> Call:
    """The call that an operator's arguments describe."""
    fields: dict[str, Any] = {name: given[name] for name in CALL_FIELDS if name in given}
    stored = stored_dtype(fields["x"], fields["residual"])
    for name in ("out_dtype", "stream_dtype"):
        fields[name] = fields.get(name) or stored
    return Call(**fields)


def as_gradient(arguments: Iterable[Any]) -> Gradient:
    """The gradient that the arguments of ``addnorm::backward`` describe."""
    given = dict(zip(GRADIENT_FIELDS, arguments, strict=False))
    dtypes = {name: given.get(name) or given["z"].dtype for name in ("x_dtype", "residual_dtype", "bias_dtype")}
    return Gradient(**given | dtypes)
