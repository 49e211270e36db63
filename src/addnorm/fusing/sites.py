"""The Add & Norm sites of a captured graph: which norm, which sum, what on the branch; or why a norm call is none."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from ..checks import DTYPES
from .branch import Branch, branch_of, dropout_of, residual_of
from .changes import Change, blocked, changed, changes, memory
from .nodes import example, is_call, is_method, is_sum, same, shape, title, value_users, viewed
from .patterns import norm_calls
from .written import NormCall


@dataclass(frozen=True, eq=False)
class Site:
    """A norm call and what goes with it. ``reason`` says why it is no Add & Norm site; then only ``norm`` is known,
    and ``plain`` says whether it can be a fused norm without a sum, of x.

    The sum is ``residual_scale * residual + row_scale * branch_scale * dropout(x + branch_bias)``, see `Branch`.
    """

    norm: NormCall
    reason: str = ""
    plain: bool = False
    add: Node | None = None
    view: Node | None = None  # of the sum, row by row, where the norm is of that
    x: Node | None = None
    residual: Node | None = None
    residual_scale: float = 1.0
    branch: Branch | None = None
    inner: tuple[Node, ...] = ()  # what is folded in before the sum, in order of execution
    stream: bool = False  # the sum has other users

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that the fused call replaces, in order of execution."""
        return (*self.inner, *([self.add] if self.add is not None else []), *self.norm.nodes)

    @property
    def dropout(self) -> Node | None:
        return None if self.branch is None else self.branch.dropout

    @property
    def dropout_p(self) -> float:
        return 0.0 if self.branch is None else self.branch.dropout_p

    @property
    def training(self) -> bool:
        return self.branch is not None and self.branch.training

    @property
    def tensors(self) -> dict[str, Node]:
        """What the branch has beside x, by argument of `add_norm`."""
        names = ("branch_bias", "branch_scale", "row_scale")
        found = {name: getattr(self.branch, name, None) for name in names}
        return {name: node for name, node in found.items() if isinstance(node, Node)}

    @property
    def folded(self) -> tuple[str, ...]:
        """The arguments of `add_norm` that came from the model's code, and the sum."""
        if self.add is None:
            return ()
        names = ("branch_bias", "dropout", "branch_scale", "row_scale")
        return (
            *(name for name in names if getattr(self.branch, name, None) is not None),
            *(["residual_scale"] if self.residual_scale != 1 else []),
            "add",
        )


WITHOUT_NUMBERS = "its tensors are on the meta device, where there are no numbers to try it on"
BORDER = "its input enters checkpointed code; to make the sum before it here too, two tensors would be kept for one"
SHARED = "the sum before it is fused with another norm of the same sum"
LOST = "what its gradients would need is changed in place later"
ASKED = "the sum before it is returned or has a hook, where its gradient is asked for"
NORMED = "no sum of two tensors before it: its input is a norm"


def find_sites(graph: Graph, *, checkpointed: bool = False) -> list[Site]:
    """All norm calls of the graph, in order, each for itself; `checkpointed` says whether it is one inside another."""
    order, found = {node: index for index, node in enumerate(graph.nodes)}, changes(graph)
    return [checked(site_of(norm, order, checkpointed), order, found) for norm in norm_calls(graph)]


def fusible_sites(graph: Graph, *, checkpointed: bool = False) -> list[Site]:
    """The same, of which all without a reason can be fused at once: no node is replaced by two. Of norms that share a
    sum the first makes it, and the others take it in alone."""
    order, found = {node: index for index, node in enumerate(graph.nodes)}, changes(graph)
    sites, replaced = [], set()
    for site in find_sites(graph, checkpointed=checkpointed):
        if not replaced.isdisjoint(site.nodes):
            reason = SHARED if site.add in {each.add for each in sites} else NORMED
            site = checked(alone(site, reason), order, found)
        elif is_asked(site):
            site = checked(alone(site, ASKED), order, found)
        if site.plain or not site.reason:
            if is_lost(site, order, found):
                site = Site(site.norm, LOST)
            else:
                replaced.update(site.nodes)
        sites.append(site)
    return sites


def alone(site: Site, reason: str) -> Site:
    """The site's norm without its sum."""
    norm = site.norm
    return Site(norm, reason, plain=known_types(norm.input, norm.result), view=site.view, x=norm.input)


def site_of(norm: NormCall, order: dict[Node, int], checkpointed: bool = False) -> Site:
    """The sum before the norm, and what is on the branch before the sum."""
    norm, view = through_view(norm)
    add = norm.input
    if norm.dimensions != 1:
        return Site(norm, f"it normalises over {norm.dimensions} dimensions: add_norm takes the last one")
    if not isinstance(norm.eps, (int, float)):
        return Site(norm, "its eps is computed in the model, not a constant")
    if is_call(add, operator.iadd) or is_method(add, "add_"):
        return Site(norm, "the sum before it is made in place")
    operands = add_operands(add)
    if operands is None:
        entering = checkpointed and add.op == "placeholder"
        reason = BORDER if entering else f"no sum of two tensors before it: its input is {title(add)}"
        return Site(norm, reason, plain=known_types(add, norm.result), x=add)
    if not known_types(*operands, norm.result):
        dtypes = {value.dtype for value in map(example, (*operands, norm.result)) if value is not None}
        return Site(norm, f"the sum's types are {', '.join(sorted(map(str, dtypes)))}")
    whole = [same(shape(add), shape(operand)) for operand in operands]
    x, residual = in_order(operands, whole, order)
    if x is residual:  # added to itself: both would need what either has folded in
        branch, scale, scaling = Branch(x), 1.0, ()
    else:
        branch = branch_of(x) if whole[operands.index(x)] else Branch(x)
        residual, scale, scaling = residual_of(residual)
    return Site(
        norm,
        add=add,
        view=view,
        x=branch.x,
        residual=residual,
        residual_scale=scale,
        branch=branch,
        inner=tuple(sorted((*branch.nodes, *scaling), key=order.__getitem__)),
        stream=any(user not in norm.nodes for user in add.users),
    )


def through_view(norm: NormCall) -> tuple[NormCall, Node | None]:
    """The norm as one of the sum that its input is a view of, row by row, and the view; else the norm as it is, also
    where the input is a copy: what is changed afterwards is one of the two."""
    view, source = norm.input, viewed(norm.input)
    counted = norm.written and len(shape(source) or ()) != len(shape(view) or ())  # its dimensions, perhaps
    if source is view or memory(source) != memory(view) or counted or add_operands(source) is None:
        return norm, None
    own = {*view.users} <= {*norm.nodes}
    return replace(norm, input=source, nodes=(view, *norm.nodes) if own else norm.nodes), view


def known_types(*nodes: Node) -> bool:
    return all((value := example(node)) is not None and value.dtype in DTYPES for node in nodes)


def add_operands(node: Any) -> tuple[Node, Node] | None:
    """The two tensors of a plain sum."""
    if not is_sum(node):
        return None
    a, b = node.args
    if example(a) is None or example(b) is None or shape(node) is None:
        return None
    return a, b


def in_order(operands: tuple[Node, Node], whole: list[bool], order: dict[Node, int]) -> tuple[Node, Node]:
    """``(branch, residual)``: the branch has the whole shape; then it is what has something to fold, dropout before
    all, or what was computed later. Without that the two are interchangeable."""

    def rank(index: int) -> tuple[bool, bool, int, int]:
        operand = operands[index]
        branch = branch_of(operand)
        folds = len(branch.nodes) + (branch.branch_bias is not None)
        return whole[index], dropout_of(operand) is not None, min(folds, 1), order[operand]

    first = max((0, 1), key=rank)
    return operands[first], operands[1 - first]


def checked(site: Site, order: dict[Node, int], found: list[Change]) -> Site:
    """The site, or the reason why moving its parts together could change what the model does."""
    if site.reason and not site.plain:
        return site
    reason = obstacle(site, order, found)
    return Site(site.norm, site.reason or reason) if reason else site


def obstacle(site: Site, order: dict[Node, int], found: list[Change]) -> str:
    inside = {*site.nodes}
    for node in site.nodes:
        if node not in (site.norm.result, site.add) and any(user not in inside for user in value_users(node)):
            return f"an intermediate result ({title(node)}) is used elsewhere"
    place = order[site.norm.result if site.add is None else site.add]
    parameters = [node for node in (site.norm.weight, site.norm.bias) if node is not None]
    if any(order[node] > place for node in parameters):
        return "its weight or bias is computed after the sum"
    operands = (site.x, site.residual, *site.tensors.values(), *parameters)
    if reason := no_place({value.device for value in map(example, operands) if value is not None}):
        return reason
    if blocked(found, order, (*site.norm.gain_nodes, *site.nodes), place):
        return "between the sum and the norm something is changed in place or a torch mode is switched"
    return ""


def is_lost(site: Site, order: dict[Node, int], found: list[Change]) -> bool:
    """Whether what a fused site keeps for its gradients is changed in place later. A model may do so where its own
    operations keep something else: a copy in float32, the difference from the mean, a product."""
    result = example(site.norm.result)
    if result is None or not result.requires_grad:
        return False
    kept = [site.x if site.add is None else site.add, site.norm.weight, *site.tensors.values()]
    kept += [site.x] if site.tensors else []
    place = order[site.norm.result if site.add is None else site.add]
    return any(changed(found, node, place) for node in kept if node is not None)


def is_asked(site: Site) -> bool:
    """Whether the gradient of the norm with respect to the sum may be asked for, where two results of one operation do
    not depend on each other: the captured code returns the sum, or a view of it, or it has a hook."""
    value = example(site.add)
    if site.add is None or value is None or not value.requires_grad:
        return False
    if any(title(user) == "register_hook" for user in site.add.users):
        return True
    (output,) = site.add.graph.find_nodes(op="output")
    return any(memory(node) == memory(site.add) for node in output.all_input_nodes)


def no_place(devices: set[torch.device]) -> str:
    """Why `add_norm` can not run where a site's tensors are; "" where it can."""
    if len(devices) > 1:
        return f"its tensors are on {' and '.join(sorted(map(str, devices)))}: add_norm takes those of one device"
    return WITHOUT_NUMBERS if devices == {torch.device("meta")} else ""
