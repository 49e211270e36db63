"""The Add & Norm sites of a captured graph: which norm, which sum, which dropout; or why a norm call is none."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F  # noqa: N812

from ..call import DTYPES
from .patterns import NormCall, example, is_call, is_method, norm_calls

CONTEXTS = ("_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode", "_exit_inference_mode")


@dataclass(frozen=True, eq=False)
class Site:
    """A norm call and what goes with it. ``reason`` says why it is no Add & Norm site; then only ``norm`` is known.

    The sum is ``residual + dropout(x)``; ``dropout`` is the node folded in, if any.
    """

    norm: NormCall
    reason: str = ""
    add: Node | None = None
    x: Node | None = None
    residual: Node | None = None
    dropout: Node | None = None
    dropout_p: float = 0.0
    training: bool = False
    stream: bool = False  # the sum has other users

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that the fused call replaces, in order of execution."""
        return tuple(node for node in (self.dropout, self.add) if node is not None) + self.norm.nodes

    @property
    def folded(self) -> tuple[str, ...]:
        return (*(["dropout"] if self.dropout is not None else []), "add")


def find_sites(graph: Graph) -> list[Site]:
    """All norm calls of the graph, in order."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    barriers = [index for node, index in order.items() if is_barrier(node)]
    return [checked(site_of(norm), order, barriers) for norm in norm_calls(graph)]


def site_of(norm: NormCall) -> Site:
    """The sum before the norm and the dropout before the sum."""
    add = norm.input
    if norm.dimensions != 1:
        return Site(norm, f"it normalises over {norm.dimensions} dimensions: add_norm takes the last one")
    if not isinstance(norm.eps, (int, float)):
        return Site(norm, "its eps is computed in the model, not a constant")
    if is_call(add, operator.iadd) or is_method(add, "add_"):
        return Site(norm, "the sum before it is made in place")
    operands = add_operands(add)
    if operands is None:
        return Site(norm, f"no sum of two tensors before it: its input is {title(add)}")
    shapes = [shape(operand) for operand in operands]
    whole = shape(add)
    full = [same(whole, each) for each in shapes]
    if whole is None or not any(full):
        return Site(norm, f"the operands of the sum have shapes {shapes[0]} and {shapes[1]}: one must be the sum's")
    dtypes = {value.dtype for value in map(example, (*operands, norm.result)) if value is not None}
    if not dtypes <= {*DTYPES}:
        return Site(norm, f"the sum's types are {', '.join(map(str, dtypes))}")
    branch, residual = in_order(operands, full)
    site = Site(norm, add=add, x=branch, residual=residual, stream=any(user not in norm.nodes for user in add.users))
    return with_dropout(site) if full[operands.index(branch)] else site


def add_operands(node: Any) -> tuple[Node, Node] | None:
    """The two tensors of a plain sum."""
    if not (is_call(node, operator.add, torch.add) or is_method(node, "add")) or node.kwargs or len(node.args) != 2:
        return None
    a, b = node.args
    if example(a) is None or example(b) is None:
        return None
    return a, b


def in_order(operands: tuple[Node, Node], full: list[bool]) -> tuple[Node, Node]:
    """``(branch, residual)``: the branch has the whole shape; then it is what went through dropout, or what was
    computed later. Without dropout the two are interchangeable."""
    a, b = operands
    if not all(full):
        return (a, b) if full[0] else (b, a)
    if (foldable(a) is None) == (foldable(b) is None):
        order = list(a.graph.nodes)
        return (a, b) if order.index(a) > order.index(b) else (b, a)
    return (a, b) if foldable(a) is not None else (b, a)


def with_dropout(site: Site) -> Site:
    found = foldable(site.x)
    if found is None:
        return site
    source, p, training = found
    return replace(site, x=source, dropout=site.x, dropout_p=p, training=training)


def foldable(node: Node | None) -> tuple[Node, float, bool] | None:
    """``(source, p, training)`` of a dropout that only the sum uses."""
    if not is_call(node, F.dropout, torch.dropout) or node is None or len(node.users) != 1:
        return None
    names = ("input", "p", "training", "inplace")
    options = {"p": 0.5, "training": True, "inplace": False, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    source, p, training = options["input"], options["p"], options.get("train", options["training"])
    plain = isinstance(p, (int, float)) and isinstance(training, bool) and isinstance(source, Node)
    return (source, float(p), training) if plain and 0 <= p < 1 and not options["inplace"] else None


def checked(site: Site, order: dict[Node, int], barriers: list[int]) -> Site:
    """The site, or the reason why moving its parts together could change what the model does."""
    if site.reason or site.add is None:
        return site
    inside = {*site.nodes}
    for node in site.nodes:
        if node not in (site.norm.result, site.add) and any(user not in inside for user in node.users):
            return Site(site.norm, f"an intermediate result ({title(node)}) is used elsewhere")
    first, last = order[site.nodes[0]], order[site.norm.result]
    if any(first <= index <= last for index in barriers):
        return Site(site.norm, "between the sum and the norm something is changed in place or a torch mode is switched")
    parameters = (node for node in (site.norm.weight, site.norm.bias) if node is not None)
    if any(order[node] > order[site.add] for node in parameters):
        return Site(site.norm, "its weight or bias is computed after the sum")
    return site


def is_barrier(node: Node) -> bool:
    """Whether a node changes what was there before: writes in place, or switches a mode."""
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    in_place = name in INPLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
    return in_place or name in CONTEXTS or "out" in node.kwargs or given(node, "inplace") is True


def given(node: Node, name: str) -> Any:
    """An argument of a call of a Python function, by name, however it was passed."""
    code = getattr(node.target, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get(name)


INPLACE_OPERATORS = {"setitem", "delitem", *(f"i{name}" for name in ("add", "sub", "mul", "truediv", "pow", "matmul"))}


def title(node: Any) -> str:
    """A node in words: the name of its function, method or input."""
    if not isinstance(node, Node):
        return repr(node)
    if node.op == "placeholder":
        return "an input of the captured code"
    return getattr(node.target, "__name__", str(node.target))


def shape(node: Any) -> tuple[Any, ...] | None:
    value = example(node)
    return None if value is None else tuple(value.shape)


def same(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    """Whether two shapes are known to be equal, without asking more of symbolic sizes than was asked before."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))
