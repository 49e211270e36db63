"""Put fused calls into a captured graph, in the place of the sites' own operations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._higher_order_ops.wrap import TagActivationCheckpoint, tag_activation_checkpoint
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from .dropout import draw_faster
from .nodes import dtype_of, operand, same, shape
from .sites import Site

Target = Callable[..., Any]


def rewritten(module: GraphModule, targets: dict[Site, Target], watch: dict[Site, Target]) -> GraphModule:
    """A copy of the module in which each site of `targets` is one call of its target, with the arguments of
    `add_norm` (of `add_norm_stream` where the sum lives on); the rest is shared with the original.

    The targets in `watch` are called with the weight (or None) after the norm calls that are left as they are.
    Dropouts elsewhere are drawn by the kernels too. Graphs inside the graph, as checkpointing makes them, are rewritten
    in the same way.
    """
    graph, now = copied(module.graph)
    for site, target in of_graph(module.graph, targets):
        put(graph, site, target, now)
    for site, target in of_graph(module.graph, watch):
        with graph.inserting_after(now[site.norm.result]):
            graph.call_function(target, (found(now, site.norm.weight),))
    draw_faster(graph)
    result = GraphModule(module, graph)
    for name, inner in module.named_children():
        if isinstance(inner, GraphModule):
            setattr(result, name, rewritten(inner, targets, watch))
    return result


def of_graph(graph: Graph, targets: dict[Site, Target]) -> list[tuple[Site, Target]]:
    return [(site, target) for site, target in targets.items() if site.norm.result.graph is graph]


def copied(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
    """A copy of the graph, and where each node went. What is checkpointed in it can run as it stands."""
    copy, copies = Graph(), {}
    for node in graph.nodes:
        copies[node] = copy.node_copy(node, lambda source: copies[source])
        if node.target is tag_activation_checkpoint:
            copies[node].target = checkpointed
    copy._codegen = graph._codegen
    return copy, copies


def checkpointed(body: GraphModule, *args: Any, **kwargs: Any) -> Any:
    """Activation checkpointing of a captured body.

    torch's own operation for it is meant for a compiler: run as it stands it recomputes with other random numbers than
    it drew at first, and gives wrong gradients wherever there is dropout.
    """
    options, inputs = TagActivationCheckpoint.divide_kwargs(kwargs)
    options = {name: options[name] for name in ("preserve_rng_state", "determinism_check") if name in options}
    if "_checkpoint_context_fn" in body.meta:
        options["context_fn"] = body.meta["_checkpoint_context_fn"]
    return checkpoint(body, *args, use_reentrant=False, **options, **inputs)


def put(graph: Graph, site: Site, target: Target, now: dict[Node, Node]) -> None:
    """One fused call at the place of the sum, and the site's own nodes away. `now` says where each node of the site's
    graph is found in this one, and is kept up."""
    norm, add = site.norm, site.add
    old, result = [now[node] for node in site.nodes], now[norm.result]
    with graph.inserting_before(result if add is None else now[add]):
        x, residual = operands(graph, site, now)
        arguments: tuple[Any, ...] = (x, residual, found(now, norm.weight), found(now, norm.bias))
        while arguments[-1] is None:
            arguments = arguments[:-1]
        tensors: dict[str, Any] = {name: now[node] for name, node in site.tensors.items()}
        if "row_scale" in tensors:
            tensors["row_scale"] = graph.call_method("squeeze", (tensors["row_scale"], -1))
        y = call = graph.call_function(target, arguments, {**options(site), **tensors})
        call.meta = dict(result.meta)
        if site.stream and add is not None:
            y = graph.call_function(operator.getitem, (call, 0))
            stream = graph.call_function(operator.getitem, (call, 1))
            y.meta, stream.meta = dict(result.meta), dict(now[add].meta)
            now[add].replace_all_uses_with(stream, delete_user_cb=lambda user: user not in old)
            now[add] = stream
    if site.view is not None:
        view = now[site.view]
        with graph.inserting_before(result):
            source = operand(view)
            seen = graph.node_copy(view, lambda node: y if node is source else node)
            size = graph.call_method("size", (seen,))
            y = graph.call_function(torch.ops.aten._unsafe_view.default, (y, size))  # a view has rules of its own
        y.meta = dict(result.meta)
    result.replace_all_uses_with(y)
    now[norm.result] = y
    for node in reversed(old):
        node.replace_all_uses_with(x)  # what asks for its type and device only
        graph.erase_node(node)
    for node in reversed(norm.gain_nodes):
        if not now[node].users:
            graph.erase_node(now[node])


def found(now: dict[Node, Node], node: Node | None) -> Node | None:
    return None if node is None else now[node]


def operands(graph: Graph, site: Site, now: dict[Node, Node]) -> tuple[Any, Any]:
    """x and the residual in the sum's shape; of a Linear whose bias is folded in, what it is without."""
    assert site.x is not None
    x, residual = now[site.x], found(now, site.residual)
    if "branch_bias" in site.tensors:
        with graph.inserting_before(x):
            bare = graph.call_function(F.linear, x.args[:2], {k: v for k, v in x.kwargs.items() if k != "bias"})
        bare.meta = dict(x.meta)
        x.replace_all_uses_with(bare)
        graph.erase_node(x)
        x = bare
    if residual is None:
        return x, None
    whole = shape(site.add)
    if not same(shape(site.x), whole):
        both = graph.call_function(torch.broadcast_tensors, (x, residual))
        return graph.call_function(operator.getitem, (both, 0)), graph.call_function(operator.getitem, (both, 1))
    if not same(shape(site.residual), whole):
        residual = graph.call_method("expand_as", (residual, x))
    return x, residual


def options(site: Site) -> dict[str, Any]:
    """The keyword arguments of the fused call that are numbers: those that differ from the defaults, and eps."""
    norm = site.norm
    chosen: dict[str, Any] = {"eps": norm.eps}
    if norm.kind != "layer":
        chosen["norm"] = norm.kind
    if norm.weight_offset != 0:
        chosen["weight_offset"] = norm.weight_offset
    if site.training and site.dropout_p > 0:
        chosen["dropout_p"] = site.dropout_p
    if site.branch is not None and isinstance(site.branch.branch_scale, float):
        chosen["branch_scale"] = site.branch.branch_scale
    if site.residual_scale != 1:
        chosen["residual_scale"] = site.residual_scale
    given = [dtype_of(node) for node in (site.x, site.residual) if node is not None]
    stored = given[0] if len(given) == 1 else torch.promote_types(*given)
    y, z = dtype_of(norm.result), stored if site.add is None else dtype_of(site.add)
    if y != stored:
        chosen["out_dtype"] = y
    if z != stored:
        chosen["stream_dtype"] = z
    return chosen
