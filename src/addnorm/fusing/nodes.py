"""Small questions about the nodes of a captured graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..checks import DTYPES

CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as"}


def is_call(node: Any, *functions: Callable[..., Any]) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in functions


def is_method(node: Any, *names: str) -> bool:
    return isinstance(node, Node) and node.op == "call_method" and node.target in names


def is_op(node: Any, *functions: Callable[..., Any]) -> bool:
    """Whether a node calls one of the functions, or the tensor's method of the same name."""
    return is_call(node, *functions) or is_method(node, *(function.__name__ for function in functions))


def is_binary(node: Any, *functions: Callable[..., Any]) -> bool:
    """The same of two operands and no options, such as alpha."""
    return is_op(node, *functions) and len(node.args) == 2 and not node.kwargs


def given(node: Node, *names: str) -> dict[str, Any]:
    """The arguments of a call by name, however they were passed."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def operand(node: Node) -> Any:
    """The first argument of one of torch's functions or methods."""
    return given(node, "input").get("input")


def example(node: Any) -> Tensor | None:
    """The fake tensor that tracing saw at a node."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def dtype_of(node: Node | None) -> torch.dtype:
    value = example(node)
    assert value is not None
    return value.dtype


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


def uncast(node: Any) -> Any:
    """The same of a parameter, whose cast to another tensor's type would bring that along."""
    while is_cast(node) and len(node.all_input_nodes) == 1:
        node = node.args[0]
    return node


def viewed(node: Any) -> Any:
    """h of a view or a reshape of h that leaves the rows of its last dimension as they are, else the node itself. In a
    type, even its own by name, a view has no gradient."""
    if not is_op(node, torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze) and not is_method(node, "view"):
        return node
    before, after = example(operand(node)), example(node)
    if (
        before is None
        or after is None
        or any(isinstance(each, torch.dtype) for each in (*node.args, *node.kwargs.values()))
    ):
        return node
    return operand(node) if same(tuple(before.shape[-1:]), tuple(after.shape[-1:])) else node


def only_user(node: Node) -> Node | None:
    """The one node that uses this one, looking through casts that have one user themselves."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return only_user(user) if is_cast(user) and len(user.users) == 1 else user


def cast_back(node: Node, origin: Node) -> Node | None:
    """The cast of a node that is its only use, to a constant type or to that of origin."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and is_cast(user) and {*user.all_input_nodes} <= {node, origin} else None


def sum_with_number(node: Any) -> tuple[float, Node] | None:
    """``(number, node)`` of ``node + number``, in either order."""
    if not is_sum(node):
        return None
    a, b = node.args
    if isinstance(a, Node) and isinstance(b, (int, float)):
        return b, a
    return (a, b) if isinstance(b, Node) and isinstance(a, (int, float)) else None


def is_last_mean(node: Any) -> bool:
    """Whether a node is the mean over the last dimension, which is kept."""
    return is_op(node, torch.mean) and "dtype" not in node.kwargs and over_last(given(node, "input", "dim", "keepdim"))


def is_last_variance(node: Any) -> bool:
    """Whether a node is the biased variance over the last dimension, which is kept."""
    if not is_op(node, torch.var):
        return False
    found = given(node, "input", "dim", "unbiased", "keepdim")
    return (found.get("unbiased") is False or found.get("correction") == 0) and over_last(found)


def over_last(found: dict[str, Any]) -> bool:
    """Whether a reduction with these arguments is over the last dimension, which it keeps."""
    value, dim = example(found.get("input")), found.get("dim")
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    return value is not None and dim in (-1, value.dim() - 1) and found.get("keepdim") is True


def squared(node: Any) -> Node | None:
    """h of ``h ** 2``, ``h * h`` or ``square(h)``."""
    if is_power(node, 2) or is_op(node, torch.square):
        return operand(node)
    return node.args[0] if is_product(node) and node.args[0] is node.args[1] else None


def is_product(node: Any) -> bool:
    return is_binary(node, operator.mul, torch.mul)


def is_quotient(node: Any) -> bool:
    return is_binary(node, operator.truediv, torch.div)


def is_difference(node: Any) -> bool:
    return is_binary(node, operator.sub, torch.sub)


def is_sum(node: Any) -> bool:
    return is_binary(node, operator.add, torch.add)


def is_power(node: Any, exponent: float) -> bool:
    return is_binary(node, operator.pow, torch.pow) and node.args[1] == exponent


def factor_beside(factor: Node) -> tuple[Node, Node] | tuple[None, None]:
    """The product that is a factor's only use, and its other factor."""
    product = only_user(factor)
    if product is None or not is_product(product):
        return None, None
    a, b = product.args
    if not isinstance(a, Node) or not isinstance(b, Node):
        return None, None
    return product, b if through_casts(a) is factor else a


def is_vector_of(node: Any, whole: Node) -> bool:
    """Whether a node has one number for each feature of another, as the weight of its norm has."""
    value, features = example(node), shape(whole)
    return value is not None and features is not None and value.dtype in DTYPES and same(shape(node), features[-1:])


def between(end: Node, stops: set[Any]) -> set[Node]:
    """The nodes that end is computed from, itself among them, as far back as the stops (left out)."""
    found: set[Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in stops and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def shape(node: Any) -> tuple[Any, ...] | None:
    value = example(node)
    return None if value is None else tuple(value.shape)


def same(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    """Whether two shapes are known to be equal, without asking more of symbolic sizes than was asked before."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def title(node: Any) -> str:
    """A node in words: the name of its function, method or input."""
    if not isinstance(node, Node):
        return repr(node)
    if node.op == "placeholder":
        return "an input of the captured code"
    if is_call(node, operator.getitem):
        return f"a part of {title(node.args[0])}"
    return getattr(node.target, "__name__", str(node.target))


def value_users(node: Node) -> list[Node]:
    """Those who use a node's values, not only its type and device."""
    return [user for user in node.users if not is_method(user, "new_empty", "new_ones", "new_zeros", "new_full")]
