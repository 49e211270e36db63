"""What goes with the branch before the sum: scales, stochastic depth, dropout, a Linear's bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node
from torch.nn import functional as F  # noqa: N812

from ..checks import DTYPES
from .nodes import example, given, is_call, is_product, is_quotient, same, shape, value_users


@dataclass(frozen=True, eq=False)
class Branch:
    """``row_scale * branch_scale * dropout(x + branch_bias)``, the factors in any order in the model.

    ``nodes`` are the operations folded in, in order of execution; with a `branch_bias`, x is the Linear that adds it.
    """

    x: Node
    nodes: tuple[Node, ...] = ()
    dropout: Node | None = None
    dropout_p: float = 0.0
    training: bool = False
    branch_bias: Node | None = None
    branch_scale: Node | float | None = None
    row_scale: Node | None = None


def branch_of(node: Node) -> Branch:
    """All that can be folded, from the sum backwards; each operation is used by the next alone."""
    branch = Branch(node)
    while (step := peeled(branch)) is not None:
        branch = replace(step, nodes=(branch.x, *branch.nodes))
    bias = bias_of(branch.x)
    return branch if bias is None else replace(branch, branch_bias=bias)


def peeled(branch: Branch) -> Branch | None:
    """The branch with one more operation folded in."""
    node = branch.x
    if len(value_users(node)) != 1:
        return None
    found = dropout_of(node)
    if found is not None:
        source, p, training = found
        return None if branch.dropout else replace(branch, x=source, dropout=node, dropout_p=p, training=training)
    if is_quotient(node):
        source, divisor = node.args
        return scaled(branch, source, 1 / divisor) if isinstance(divisor, (int, float)) and divisor != 0 else None
    if not is_product(node) or node.args[0] is node.args[1]:  # of a square, both would need what either has folded in
        return None
    a, b = node.args
    for source, factor in ((a, b), (b, a)):
        if same(shape(source), shape(node)) and (found := scaled(branch, source, factor)) is not None:
            return found
    return None


def scaled(branch: Branch, source: Any, factor: Any) -> Branch | None:
    """The branch with a factor folded in, where that is one per feature, one per row, or a number."""
    before, after = example(source), example(branch.x)
    if before is None or after is None or before.dtype != after.dtype:
        return None
    if is_number(factor):
        return replace(branch, x=source, branch_scale=float(factor)) if branch.branch_scale is None else None
    value, whole = example(factor), shape(source)
    if value is None or whole is None or value.dtype not in DTYPES or value.device != before.device:
        return None
    if branch.branch_scale is None and (value.dim() == 0 or same(tuple(value.shape), whole[-1:])):
        return replace(branch, x=source, branch_scale=factor)
    one_per_row = value.dim() == len(whole) > 1 and value.shape[-1] == 1 and whole[-1] != 1
    return replace(branch, x=source, row_scale=factor) if one_per_row and branch.row_scale is None else None


def dropout_of(node: Any) -> tuple[Node, float, bool] | None:
    """``(source, p, training)`` of a dropout that only one node uses."""
    found = dropout_call(node)
    return found if found is not None and len(node.users) == 1 else None


def dropout_call(node: Any) -> tuple[Node, float, bool] | None:
    """``(source, p, training)`` of a dropout."""
    if not is_call(node, F.dropout, torch.dropout):
        return None
    options = {"p": 0.5, "training": True, "inplace": False, **given(node, "input", "p", "training", "inplace")}
    source, p, training = options["input"], options["p"], options.get("train", options["training"])
    plain = isinstance(p, (int, float)) and isinstance(training, bool) and isinstance(source, Node)
    return (source, float(p), training) if plain and 0 <= p < 1 and not options["inplace"] else None


def bias_of(node: Node) -> Node | None:
    """The bias of a Linear that only one node uses."""
    if not is_call(node, F.linear) or len(node.users) != 1:
        return None
    bias = given(node, "input", "weight", "bias").get("bias")
    return bias if isinstance(bias, Node) else None


def residual_of(node: Node) -> tuple[Node, float, tuple[Node, ...]]:
    """``(residual, scale, nodes)``: a residual that is multiplied by a number, as DeepNorm's."""
    if is_product(node) and len(node.users) == 1:
        after = example(node)
        for source, factor in (node.args, reversed(node.args)):
            before = example(source)
            if is_number(factor) and before is not None and after is not None and before.dtype == after.dtype:
                return source, float(factor), (node,)  # pyright: ignore
    return node, 1.0, ()


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
