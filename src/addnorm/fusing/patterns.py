"""The norm calls of a captured graph: LayerNorm and RMSNorm as functions, and written out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Graph, Node
from torch.nn import functional as F  # noqa: N812

from .nodes import between, cast_back, example, given, is_call, is_cast, is_vector_of, uncast
from .written import NormCall, is_root, leaf_of, written_norm

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
    serve this call alone, before it and after it, are a part of it, and so are the parameters' casts and a number that
    is added to the weight."""
    names = ("input", "normalized_shape", "weight", *(["bias"] if kind == "layer" else []), "eps")
    found = given(node, *names)
    eps = found.get("eps", 1e-5 if kind == "layer" else None)
    if eps is None:  # torch's own default, by the type of its arithmetic
        value = example(found["input"])
        wide = value is not None and value.dtype == torch.float64
        eps = torch.finfo(torch.float64 if wide else torch.float32).eps
    shape, weight, bias = (found.get(name) for name in ("normalized_shape", "weight", "bias"))
    (gain, offset), shift = leaf_of(weight), uncast(bias)
    if not is_vector_of(gain, found["input"]):
        gain, offset = weight, 0.0
    ways = [(end, leaf) for end, leaf in ((weight, gain), (bias, shift)) if isinstance(end, Node) and end is not leaf]
    making = {each for end, leaf in ways for each in between(end, {leaf})}
    origin, nodes = found["input"], [node]
    while is_cast(origin) and len(origin.users) == 1 and len(origin.all_input_nodes) == 1:
        nodes.insert(0, origin)
        origin = origin.args[0]
    if (cast := cast_back(node, origin)) is not None:
        nodes.append(cast)
    return NormCall(
        kind,
        tuple(nodes),
        origin,
        gain,
        shift,
        eps,
        offset,
        tuple(each for each in node.graph.nodes if each in making) if making else (),
        dimensions=len(shape) if isinstance(shape, (tuple, list, torch.Size)) else 1,
    )
