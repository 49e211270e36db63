"""The norm calls of a captured graph: LayerNorm and RMSNorm as functions, and written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional as F  # noqa: N812

from .nodes import example, is_call, is_cast
from .written import NormCall, is_root, written_norm

LAYER_NORMS = (F.layer_norm, torch.layer_norm)
RMS_NORMS = (F.rms_norm, torch.rms_norm)


def norm_calls(graph: Graph) -> Iterator[NormCall]:
    for node in graph.nodes:
        if is_call(node, *LAYER_NORMS):
            yield functional_call(node, "layer")
        elif is_call(node, *RMS_NORMS):
            yield functional_call(node, "rms")
        elif is_root(node):
            found = written_norm(node)
            if found is not None:
                yield found


def functional_call(node: Node, kind: str) -> NormCall:
    """``layer_norm(input, normalized_shape, weight, bias, eps)``, or the same without bias: ``rms_norm``. Casts that
    serve this call alone, before it and after it, are a part of it."""
    names = ("input", "normalized_shape", "weight", *(["bias"] if kind == "layer" else []), "eps")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    eps = given.get("eps", 1e-5 if kind == "layer" else None)
    if eps is None:  # torch's own default, by the type of its arithmetic
        value = example(given["input"])
        wide = value is not None and value.dtype == torch.float64
        eps = torch.finfo(torch.float64 if wide else torch.float32).eps
    shape = given["normalized_shape"]
    origin, nodes = given["input"], [node]
    while is_cast(origin) and len(origin.users) == 1 and len(origin.all_input_nodes) == 1:
        nodes.insert(0, origin)
        origin = origin.args[0]
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if is_cast(user) and user is not None and {*user.all_input_nodes} <= {node, origin}:
        nodes.append(user)
    return NormCall(
        kind,
        tuple(nodes),
        origin,
        given.get("weight"),
        given.get("bias"),
        eps,
        dimensions=len(shape) if isinstance(shape, (tuple, list, torch.Size)) else 1,
    )
