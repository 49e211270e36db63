"""What a captured graph changes in place, and whether operations may pass it."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, GraphModule, Node

from .nodes import example

CONTEXTS = ("_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode", "_exit_inference_mode")
IN_PLACE = {"setitem", "delitem", *(f"i{name}" for name in ("add", "sub", "mul", "truediv", "pow", "matmul"))}


@dataclass(frozen=True)
class Change:
    """At a place in the order of execution, a tensor is written (its memory's name), or a mode is switched."""

    index: int
    memory: int | None = None
    mode: bool = False

    def hits(self, node: Node) -> bool:
        return self.memory is None or self.memory == memory(node)


def changes(graph: Graph) -> list[Change]:
    found = []
    for index, node in enumerate(graph.nodes):
        if getattr(node.target, "__name__", "") in CONTEXTS:
            found.append(Change(index, mode=True))
        elif (written := target(node)) is not None:
            found.append(Change(index, memory(written)))
        for body in bodies(node):
            found += [Change(index, change.memory) for change in changes(body) if not change.mode]
    return found


def bodies(node: Node) -> list[Graph]:
    """The graphs that a node runs, as checkpointing does."""
    names = [each.target for each in node.all_input_nodes if each.op == "get_attr"]
    parts = [getattr(node.graph.owning_module, str(name), None) for name in names]
    return [part.graph for part in parts if isinstance(part, GraphModule)]


def target(node: Node) -> Any:
    """What a node writes into; None if nothing."""
    if node.op == "call_method":
        name = str(node.target)
        return node.args[0] if name.endswith("_") and not name.endswith("__") else None
    if node.op != "call_function":
        return None
    if "out" in node.kwargs:
        return node.kwargs["out"]
    name, function = getattr(node.target, "__name__", ""), node.target
    if isinstance(function, (OpOverload, OpOverloadPacket)):  # which of its arguments is left open
        return node.args if any(overload._schema.is_mutable for overload in overloads(function)) else None
    ends = name.endswith("_") and not name.endswith("__") and getattr(operator, name, None) is not function
    in_place = name in IN_PLACE or ends or given(node, "inplace") is True
    return node.args[0] if in_place and node.args else None


def overloads(function: OpOverload | OpOverloadPacket) -> list[OpOverload]:
    """One of torch's operators, or all that a call by its name without ``out`` may mean."""
    if isinstance(function, OpOverload):
        return [function]
    found = [getattr(function, name) for name in function.overloads()]
    return [overload for overload in found if not any(each.is_out for each in overload._schema.arguments)]


def given(node: Node, name: str) -> Any:
    """An argument of a call of a Python function, by name, however it was passed."""
    code = getattr(node.target, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get(name)


def memory(node: Any) -> int | None:
    """A name for a tensor's memory, which its views share."""
    value = example(node)
    return None if value is None else value.untyped_storage()._cdata


def changed(found: Iterable[Change], node: Node, place: int) -> bool:
    """Whether a tensor is written after a place."""
    return any(not change.mode and change.index > place and change.hits(node) for change in found)


def blocked(found: Iterable[Change], order: dict[Node, int], nodes: tuple[Node, ...], place: int) -> bool:
    """Whether reading all operands of the nodes at one place reads something else than each reads at its own."""
    first, last = min(order[node] for node in nodes), max(order[node] for node in nodes)
    reads = [
        (operand, order[node], order[operand] if operand in nodes else place)  # what is made inside is read then
        for node in nodes
        for operand in node.all_input_nodes
    ]
    for change in found:
        if change.mode and first <= change.index <= last:
            return True
        if not change.mode and any(
            min(at, made) < change.index < max(at, made) and change.hits(operand) for operand, at, made in reads
        ):
            return True
    return False
