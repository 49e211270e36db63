"""A site's own operations as a module by itself, which trials compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from .nodes import dtype_of
from .sites import Site


def original(site: Site, *, dropout: bool, dtype: torch.dtype | None = None) -> GraphModule:
    """The site's own operations as a module of ``(x, residual, weight, bias)``, and of what the branch has beside x by
    name, that gives ``(y, sum)``.

    Without `dropout` it is left out, and so is a view between sum and norm: the rows are the same. With a `dtype` every
    cast to a floating-point type is one to this type.
    """
    graph = Graph()
    places: dict[Node, Node] = {}
    leaves = {"x": site.x, "residual": site.residual, "weight": site.norm.weight, "bias": site.norm.bias}
    for name, leaf in leaves.items():
        place = graph.placeholder(name)
        if leaf is not None:
            places.setdefault(leaf, place)
    for name, leaf in site.tensors.items():
        place = graph.placeholder(name)
        if name == "row_scale":
            place = graph.call_method("unsqueeze", (place, -1))
        if name == "branch_bias" and site.x is not None:
            place = retyped(graph.call_method("to", (place, dtype_of(site.x))), dtype)
            places[site.x] = graph.call_method("add", (places[site.x], place))
        places.setdefault(leaf, place)
    total = site.x if site.add is None else site.add
    assert total is not None
    for node in (*site.norm.gain_nodes, *site.nodes):
        if node is site.dropout and not dropout:
            places[node] = places[node.all_input_nodes[0]]
        elif node is not site.view:
            copy = graph.node_copy(node, lambda source: places[total if source is site.view else source])
            places[node] = retyped(copy, dtype)
    graph.output((places[site.norm.result], places[total]))
    return GraphModule({}, graph)


def retyped(node: Node, dtype: torch.dtype | None) -> Node:
    """The node, its casts to a floating-point type turned into casts to this one."""
    if dtype is None:
        return node

    def wide(value: Any) -> Any:
        return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

    if node.op == "call_method" and node.target in ("float", "half", "bfloat16"):
        node.target, node.args = "to", (*node.args, dtype)
    node.args, node.kwargs = map_aggregate(node.args, wide), map_aggregate(node.kwargs, wide)  # pyright: ignore
    return node
