"""The norm calls of a captured graph: LayerNorm and RMSNorm as functions, and RMSNorm written out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional as F  # noqa: N812

LAYER_NORMS = (F.layer_norm, torch.layer_norm)
RMS_NORMS = (F.rms_norm, torch.rms_norm)
CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as"}


@dataclass(frozen=True, eq=False)
class NormCall:
    """A norm call. ``nodes`` are all that it consists of, in order; the last is its result."""

    kind: str
    nodes: tuple[Node, ...]
    input: Node
    weight: Node | None
    bias: Node | None
    eps: float
    weight_offset: float = 0.0
    gain_nodes: tuple[Node, ...] = ()  # what makes the gain of the weight (1 + weight, casts), in order
    dimensions: int = 1

    @property
    def result(self) -> Node:
        return self.nodes[-1]


def norm_calls(graph: Graph) -> Iterator[NormCall]:
    for node in graph.nodes:
        if is_call(node, *LAYER_NORMS):
            yield functional_call(node, "layer")
        elif is_call(node, *RMS_NORMS):
            yield functional_call(node, "rms")
        elif is_call(node, torch.rsqrt) or is_method(node, "rsqrt"):
            found = written_rms(node)
            if found is not None:
                yield found


def functional_call(node: Node, kind: str) -> NormCall:
    """``layer_norm(input, normalized_shape, weight, bias, eps)``, or the same without bias: ``rms_norm``."""
    names = ("input", "normalized_shape", "weight", *(["bias"] if kind == "layer" else []), "eps")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    eps = given.get("eps", 1e-5 if kind == "layer" else None)
    if eps is None:  # torch's own default, by the type of its arithmetic
        value = example(given["input"])
        wide = value is not None and value.dtype == torch.float64
        eps = torch.finfo(torch.float64 if wide else torch.float32).eps
    shape = given["normalized_shape"]
    return NormCall(
        kind,
        (node,),
        given["input"],
        given.get("weight"),
        given.get("bias"),
        eps,
        dimensions=len(shape) if isinstance(shape, (tuple, list, torch.Size)) else 1,
    )


def written_rms(root: Node) -> NormCall | None:
    """``[weight *] h * rsqrt(mean(h ** 2, -1, keepdim=True) + eps)``, with casts anywhere between; h is a cast of the
    input, the weight may be ``1 + weight``."""
    shifted = sum_with_number(root.args[0])
    if shifted is None:
        return None
    eps, mean = shifted[0], through_casts(shifted[1])
    base = squared(through_casts(mean.args[0])) if is_last_mean(mean) else None
    if base is None:
        return None
    origin = through_casts(base)
    result, other = factor_beside(root)
    if result is None or through_casts(other) is not origin:
        return None
    weight, offset, stops, making = None, 0.0, {origin}, set[Node]()
    outer, gain = factor_beside(result)
    if outer is not None and gain is not None:
        leaf, shift = gain_of(gain)
        if is_vector(leaf):
            result, weight, offset, stops, making = outer, leaf, shift, {origin, gain}, between(gain, {leaf})
    inside = between(result, stops)
    nodes = tuple(node for node in root.graph.nodes if node in inside)
    gain_nodes = tuple(node for node in root.graph.nodes if node in making)
    return NormCall("rms", nodes, origin, weight, None, float(eps), offset, gain_nodes)


# -- small questions about nodes ------------------------------------------------------------------


def is_call(node: Any, *functions: Callable[..., Any]) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in functions


def is_method(node: Any, *names: str) -> bool:
    return isinstance(node, Node) and node.op == "call_method" and node.target in names


def example(node: Any) -> Tensor | None:
    """The fake tensor that tracing saw at a node."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def is_cast(node: Any) -> bool:
    """Whether a node only changes the floating-point type of its operand."""
    if not is_method(node, *CASTS):
        return False
    before, after = example(node.args[0]), example(node)
    return (
        before is not None
        and after is not None
        and before.device == after.device
        and before.is_floating_point()
        and after.is_floating_point()
    )


def through_casts(node: Any) -> Any:
    while is_cast(node):
        node = node.args[0]
    return node


def only_user(node: Node) -> Node | None:
    """The one node that uses this one, looking through casts that have one user themselves."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return only_user(user) if is_cast(user) and len(user.users) == 1 else user


def sum_with_number(node: Any) -> tuple[float, Node] | None:
    """``(number, node)`` of ``node + number``, in either order."""
    if not (is_call(node, operator.add, torch.add) or is_method(node, "add")) or node.kwargs or len(node.args) != 2:
        return None
    a, b = node.args
    if isinstance(a, Node) and isinstance(b, (int, float)):
        return b, a
    return (a, b) if isinstance(b, Node) and isinstance(a, (int, float)) else None


def is_last_mean(node: Any) -> bool:
    if not (is_call(node, torch.mean) or is_method(node, "mean")):
        return False
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim")
    return dim in (-1, (-1,), [-1]) and keep is True and "dtype" not in node.kwargs


def squared(node: Any) -> Node | None:
    """h of ``h ** 2``, ``h * h`` or ``square(h)``."""
    power = is_call(node, operator.pow, torch.pow) or is_method(node, "pow")
    if power and len(node.args) == 2 and node.args[1] == 2:
        return node.args[0]
    if is_call(node, torch.square) or is_method(node, "square"):
        return node.args[0]
    return node.args[0] if is_product(node) and node.args[0] is node.args[1] else None


def is_product(node: Any) -> bool:
    return (is_call(node, operator.mul, torch.mul) or is_method(node, "mul")) and len(node.args) == 2


def factor_beside(factor: Node) -> tuple[Node, Node] | tuple[None, None]:
    """The product that is a factor's only use, and its other factor."""
    product = only_user(factor)
    if product is None or not is_product(product):
        return None, None
    a, b = product.args
    if not isinstance(a, Node) or not isinstance(b, Node):
        return None, None
    return product, b if through_casts(a) is factor else a


def gain_of(node: Node) -> tuple[Any, float]:
    """``(weight, offset)`` of a gain ``offset + weight``."""
    node = through_casts(node)
    shifted = sum_with_number(node)
    return (node, 0.0) if shifted is None else (through_casts(shifted[1]), float(shifted[0]))


def is_vector(node: Any) -> bool:
    value = example(node)
    return value is not None and value.dim() == 1


def between(end: Node, stops: set[Node]) -> set[Node]:
    """The nodes that end is computed from, itself among them, as far back as the stops (left out)."""
    found: set[Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in stops and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found
