"""LayerNorm and RMSNorm as models write them out, operation by operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .nodes import (
    between,
    cast_back,
    factor_beside,
    is_difference,
    is_last_mean,
    is_last_variance,
    is_op,
    is_power,
    is_product,
    is_quotient,
    is_sum,
    is_vector_of,
    only_user,
    operand,
    squared,
    sum_with_number,
    through_casts,
    uncast,
)


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
    gain_nodes: tuple[Node, ...] = ()  # what makes the gain of the weight (1 + weight, casts) and the bias, in order
    dimensions: int = 1
    written: bool = False  # whether it is no single function

    @property
    def result(self) -> Node:
        return self.nodes[-1]


def is_root(node: Node) -> bool:
    """Whether a node could be a norm's square root, or one over it."""
    return is_op(node, torch.rsqrt, torch.sqrt) or is_power(node, -0.5) or is_power(node, 0.5)


def written_norm(root: Node) -> NormCall | None:
    """The norm around its square root, if it is one::

        rms:    h * rsqrt(mean(h ** 2, -1, keepdim=True) + eps)
        layer:  (h - mean(h)) * rsqrt(var(h) + eps)

    times a weight or ``1 + weight``, plus a bias, with casts anywhere between; h is a cast of the input, the variance
    is written out or torch's, and there may be a division by sqrt for the product with rsqrt.
    """
    variance = sum_with_number(operand(root))
    if variance is None:
        return None
    eps, spread = variance[0], through_casts(variance[1])
    kind, origin = moment(spread)
    result, above = normalised(root)
    if origin is None or result is None:
        return None
    parts = Affine(result, origin)
    if through_casts(above) is not origin:  # weight * (h - mean) / sqrt(...) has the weight in there
        above = parts.without_weight(above)
    base = through_casts(above) if kind == "rms" else centred(above)
    if base is not origin:
        return None
    if parts.weight is None:
        parts.take_weight()
    parts.take_bias()
    parts.result = cast_back(parts.result, origin) or parts.result
    inside = between(parts.result, {origin, *parts.stops})
    order = root.graph.nodes
    nodes = tuple(node for node in order if node in inside)
    gain_nodes = tuple(node for node in order if node in parts.making)
    return NormCall(
        kind, nodes, origin, parts.weight, parts.bias, float(eps), parts.offset, gain_nodes, written=True
    )  # fmt: skip


def moment(spread: Any) -> tuple[str, Node | None]:
    """What a variance is of: ``("rms", h)`` of mean(h ** 2), ``("layer", h)`` of the variance around the mean."""
    if is_last_variance(spread):
        return "layer", through_casts(operand(spread))
    base = squared(through_casts(operand(spread))) if is_last_mean(spread) else None
    if base is None:
        return "", None
    origin = centred(base)
    return ("rms", through_casts(base)) if origin is None else ("layer", origin)


def centred(node: Any) -> Node | None:
    """h of ``h - mean(h)``."""
    node = through_casts(node)
    if not is_difference(node):
        return None
    origin, mean = through_casts(node.args[0]), through_casts(node.args[1])
    return origin if is_last_mean(mean) and through_casts(operand(mean)) is origin else None


def normalised(root: Node) -> tuple[Node | None, Any]:
    """``(result, above)`` of ``above * (1 / root)`` or ``above / root``."""
    if is_op(root, torch.rsqrt) or is_power(root, -0.5):
        return factor_beside(root)
    user = only_user(root)
    if user is None or not is_quotient(user) or through_casts(user.args[1]) is not root:
        return None, None
    if user.args[0] == 1:
        return factor_beside(user)
    return user, user.args[0]


def leaf_of(gain: Any) -> tuple[Any, float]:
    """``(weight, offset)`` of a gain ``offset + weight``."""
    node = uncast(gain)
    shifted = sum_with_number(node)
    return (node, 0.0) if shifted is None else (uncast(shifted[1]), float(shifted[0]))


class Affine:
    """What follows the normalised value: weight, bias and the cast back, taken as long as they are there."""

    def __init__(self, result: Node, origin: Node) -> None:
        self.result, self.origin = result, origin
        self.weight: Node | None = None
        self.bias: Node | None = None
        self.offset = 0.0
        self.stops: set[Node] = set()
        self.making: set[Node] = set()

    def without_weight(self, above: Any) -> Any:
        """What is multiplied with the weight before the division."""
        above = through_casts(above)
        if not is_product(above):
            return above
        for gain, rest in (above.args, reversed(above.args)):
            if self.is_gain(gain):
                self.keep_weight(gain)
                return rest
        return above

    def take_weight(self) -> None:
        product, gain = factor_beside(self.result)
        if product is not None and self.is_gain(gain):
            self.keep_weight(gain)
            self.result = product

    def take_bias(self) -> None:
        total = only_user(self.result)
        if total is None or not is_sum(total):
            return
        a, b = total.args
        bias = b if through_casts(a) is self.result else a
        leaf = uncast(bias)
        if is_vector_of(leaf, self.origin) and isinstance(bias, Node):
            self.bias, self.result = leaf, total
            self.stops.add(bias)
            self.making |= between(bias, {leaf})

    def is_gain(self, gain: Any) -> bool:
        return is_vector_of(leaf_of(gain)[0], self.origin)

    def keep_weight(self, gain: Any) -> None:
        leaf, self.offset = leaf_of(gain)
        self.weight = leaf
        self.stops.add(gain)
        self.making |= between(gain, {leaf})
