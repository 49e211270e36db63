"""Dropouts that are no part of a site, attention's among them: on the CPU the kernels of `add_norm` draw them.

torch draws a dropout's random numbers one by one there, which takes several times as long, and keeps a mask for the
backward, which is drawn again here. What Inductor generates for them is slower still. benchmarks/fuse.py measures whole
models.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F  # noqa: N812

from ..backends.native import EXTENSION
from ..checks import DTYPES
from ..functional import add_norm_stream
from .branch import dropout_call
from .nodes import example, given, is_call

FEW_COLUMNS = 16  # columns, below which rows are many and short and torch is faster
WIDE = (torch.float32, torch.float64)
ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def draw_faster(graph: Graph) -> None:
    """Let the kernels draw the dropouts that a captured graph has."""
    for node in graph.nodes if EXTENSION is not None else ():
        if (dropout := dropout_call(node)) is not None:
            source, p, training = dropout
            if training and p > 0 and on_cpu(source, DTYPES) and not narrow(source, -1):
                node.target, node.args, node.kwargs = drawn, (source, p), {}
        elif is_call(node, F.scaled_dot_product_attention) and attention_draws(node):
            node.target = attention
        elif is_call(node, F.multi_head_attention_forward) and heads_draw(node):
            node.target = multi_head_attention_forward


def has_drawn(module: nn.Module) -> bool:
    """Whether a rewritten graph has such dropouts."""
    graphs = [part.graph for part in module.modules() if isinstance(part, GraphModule)]
    return any(node.target in STAND_INS for graph in graphs for node in graph.nodes)


def attention_draws(node: Node) -> bool:
    """Whether a call of torch's attention is one that `attention` stands in for: torch makes it in these steps only
    in these types, and groups heads that are fewer beforehand."""
    options = given(node, *ATTENTION)
    tensors = [options.get(name) for name in ("query", "key", "value")]
    plain = not options.get("enable_gqa") and is_rate(options.get("dropout_p"))
    return plain and all(on_cpu(each, WIDE) for each in (*tensors, node)) and not narrow(options["key"], -2)


def heads_draw(node: Node) -> bool:
    """The same of a call of the function in `torch.nn.MultiheadAttention`, which is captured as a whole."""
    bound = HEADS.bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    options = bound.arguments
    drops = options["training"] is True and is_rate(options["dropout_p"]) and options["need_weights"] is False
    return drops and on_cpu(options["query"], WIDE) and not narrow(options["key"], 0)


def is_rate(p: Any) -> bool:
    return isinstance(p, float) and 0 < p < 1


def on_cpu(node: Any, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether a node is a tensor of the CPU's, of one of these types and of no subclass, which has rules of its own."""
    value = example(node)
    if value is None or type(value) is not FakeTensor:
        return False
    return value.device.type == "cpu" and value.dtype in dtypes and value.dim() > 0


def narrow(node: Any, dim: int) -> bool:
    value = example(node)
    return value is not None and statically_known_true(value.shape[dim] < FEW_COLUMNS)


def drawn(x: Tensor, p: float) -> Tensor:
    """``dropout(x)``: the sum of `add_norm_stream` where there is no residual. The norm beside it is not used.

    Its results are contiguous, while torch's dropout keeps the strides, which a view behind it may need."""
    return add_norm_stream(x, None, norm="rms", dropout_p=p)[1] if x.is_contiguous() else F.dropout(x, p)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` with dropout, for which torch has no kernel on the CPU: it
    makes the weights, their dropout and the product one after another. The weights are torch's here too."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    options = (attn_mask, 0.0, is_causal)
    _, weights = torch._scaled_dot_product_attention_math(query, key, value[..., :0], *options, scale=scale)
    return drawn(weights, dropout_p) @ value


def either(query: Tensor, key: Tensor, value: Tensor, *options: Any, **named: Any) -> Tensor:
    """`attention`, but torch's where autocast has changed the type."""
    stand_in = attention if query.dtype in WIDE else F.scaled_dot_product_attention
    return stand_in(query, key, value, *options, **named)


def own_copy(function: types.FunctionType, **names: Any) -> types.FunctionType:
    """A function with its code as it is, which finds other things under some names; under its own, itself."""
    found = {**function.__globals__, **names}
    made = types.FunctionType(function.__code__, found, argdefs=function.__defaults__)
    made.__module__ = __name__  # by which the code of a graph finds it
    found[function.__name__] = made
    return made


HEADS = inspect.signature(F.multi_head_attention_forward)
multi_head_attention_forward = own_copy(F.multi_head_attention_forward, scaled_dot_product_attention=either)
STAND_INS = (drawn, attention, multi_head_attention_forward)
