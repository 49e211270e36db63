"""A model's call, captured as `fuse` captures it, with a probe at every site and nothing else changed."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import Graph, GraphModule, Node

from ..call import Call
from ..checks import check_model
from ..fusing.callers import Callers
from ..fusing.captured import Captured, Unguarded
from ..fusing.eager import summary
from ..fusing.nodes import between, through_casts
from ..fusing.rewrite import copied
from ..fusing.sites import Site, find_sites
from .written import WrittenSite, in_steps, written_sites

NOTHING = (
    "it calls no LayerNorm, no RMSNorm and no add_norm that is seen: one whose norm has learned numbers of its own, as "
    "dyt and derf in AddNorm and Stack, runs as plain torch, and the placement rezero has no norm"
)


@dataclass(frozen=True)
class Place:
    """Which site: the module that calls the norm, and how many norm calls it made before in this pass."""

    norm: str
    call: int

    def __str__(self) -> str:
        return f"{self.norm or '(the model itself)'}{f' [call {self.call}]' if self.call else ''}"


@dataclass(frozen=True)
class Kind:
    """What is known of a site from the graph alone."""

    norm: str  # "layer", "rms"...
    eps: float
    weight_offset: float
    carry: str  # what the next block adds to: "z", the sum (pre-norm), or "y", its norm (post-norm)
    sublayer: bool  # whether the branch is computed from the skip; else the sum is one of embeddings, say


@dataclass(frozen=True)
class Visit:
    """The tensors of one call of a site: ``z = residual + x``, ``y = norm(z)``."""

    x: Tensor  # the branch, after its dropout
    residual: Tensor
    z: Tensor
    y: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def carried(self, kind: Kind) -> Tensor:
        return self.z if kind.carry == "z" else self.y


class Probe(Protocol):
    """Who looks at the sites."""

    def branch(self, x: Tensor) -> Tensor:
        """What is added in place of the branch."""
        ...

    def visit(self, place: Place, kind: Kind, visit: Visit) -> None:
        """One call of a site."""
        ...


class ProbedCall:
    """The model's call, run operation by operation from its captured graph, with a probe at each site.

    A model that is fused or compiled is called as it was written. `skipped` has the norm calls that are no sites, with
    the reason; `breaks` why parts could not be captured in one piece.

    Raises:
        ValueError: where there is no Python code to capture, or a parameter has no values.
    """

    def __init__(self, model: nn.Module, probe: Probe) -> None:
        check_model(model, then="look at it")
        self._model = model
        self._probes = Probes(model, probe)
        self._breaks = Counter(counters["graph_break"])
        self._captured = Captured(model, self._probes.probed)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._probes.callers.now.start()
        return self._captured(Unguarded(self._model).version(), *args, **kwargs)

    @property
    def skipped(self) -> dict[Place, str]:
        return self._probes.skipped

    @property
    def breaks(self) -> tuple[str, ...]:
        return tuple(summary(reason) for reason in Counter(counters["graph_break"]) - self._breaks)

    def no_site(self) -> str:
        """What to say of a model in which none was found."""
        reasons = [f"{place}: {reason}" for place, reason in self.skipped.items()] + list(self.breaks)
        why = "; ".join(reasons) or NOTHING
        return f"no Add & Norm site found in {type(self._model).__name__}: {why}"


class Probes:
    """What is put into the captured code, which must not hold the model (fusing/captured.py)."""

    def __init__(self, model: nn.Module, probe: Probe) -> None:
        self.skipped: dict[Place, str] = {}
        self.callers = Callers(model)
        self._probe = weakref.ref(probe)

    @property
    def probe(self) -> Probe:
        probe = self._probe()
        assert probe is not None, "a probe outlives its passes"
        return probe

    def branch(self, branch: Tensor) -> Tensor:
        """What the probe adds in place of a branch."""
        return self.probe.branch(branch)

    def probed(self, module: GraphModule, _: list[Any]) -> Callable[..., Any]:
        """Dynamo's backend: the captured piece with its probes."""
        self.callers.look_over()
        return self.with_probes(module).forward

    def with_probes(self, module: GraphModule) -> GraphModule:
        """A copy of the module, and of the graphs inside it, with a call of the probe at each site."""
        graph, copies = copied(module.graph)
        sites, written = find_sites(module.graph), written_sites(module.graph)
        flows = [*map(flow_of, sites), *map(flow_of_written, written)]
        for site in sites:
            self.watch(site, carry(flow_of(site), flows), graph, copies)
        for call in written:
            node = copies[call.node]
            if call.residual is None:
                with graph.inserting_after(node):
                    graph.call_function(self.left_alone(call.node, "no sum: a norm alone"), (node.args[2],))
            else:
                node.target = self.stand_in(call, carry(flow_of_written(call), flows))
        probed = GraphModule(module, graph)
        for name, inner in module.named_children():
            if isinstance(inner, GraphModule):
                setattr(probed, name, self.with_probes(inner))
        return probed

    def watch(self, site: Site, carried: str, graph: Graph, copies: dict[Node, Node]) -> None:
        """The probe's calls, before the sum of a site and after its norm."""
        result = copies[site.norm.result]
        parameters = [None if node is None else copies[node] for node in (site.norm.weight, site.norm.bias)]
        if site.add is None:
            with graph.inserting_after(result):
                graph.call_function(self.left_alone(site.norm.result, site.reason), (parameters[0],))
            return
        add = copies[site.add]
        branch, residual = (copies[node] for node in operands(site))
        with graph.inserting_before(add):
            gate = graph.call_function(self.branch, (branch,))
        add.replace_input_with(branch, gate)
        with graph.inserting_after(result):
            graph.call_function(self.visited(site, carried), (gate, residual, add, result, *parameters))

    def visited(self, site: Site, carried: str) -> Callable[..., None]:
        norm = site.norm
        kind = Kind(norm.kind, float(norm.eps), norm.weight_offset, carried, computed_from(*operands(site)))

        def note(x: Tensor, residual: Tensor, z: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
            place = Place(*self.callers.named(norm.result, weight))
            self.probe.visit(place, kind, Visit(x, residual.expand_as(z), z, y, weight, bias))

        return note

    def stand_in(self, site: WrittenSite, carried: str) -> Callable[..., Any]:
        sublayer = computed_from(site.branch, site.residual)

        def look(call: Call, x: Tensor, residual: Tensor, z: Tensor, y: Tensor) -> None:
            kind = Kind(call.norm, call.eps, call.weight_offset, carried, sublayer)
            place = Place(*self.callers.named(site.node, call.weight))
            self.probe.visit(place, kind, Visit(x, residual, z, y, call.weight, call.bias))

        return in_steps(self.branch, look)

    def left_alone(self, norm: Node, reason: str) -> Callable[[Tensor | None], None]:
        def note(weight: Tensor | None) -> None:
            self.skipped[Place(*self.callers.named(norm, weight))] = reason

        return note


def operands(site: Site) -> tuple[Node, Node]:
    """What the site adds: the branch with all that was done to it, and the skip."""
    assert site.add is not None
    assert site.x is not None
    branch = site.branch.nodes[-1] if site.branch is not None and site.branch.nodes else site.x
    others = [node for node in site.add.all_input_nodes if node is not branch]
    return branch, others[0] if others else branch


def computed_from(branch: Node, residual: Node) -> bool:
    """Whether a branch is a function of its skip, as a sublayer's is and a position's embedding is not."""
    return through_casts(residual) in between(branch, set())


@dataclass(frozen=True)
class Flow:
    """What goes into a site's sum as the skip, and what comes out."""

    residual: Node | None
    sums: frozenset[Node | None]
    norms: frozenset[Node]
    stream: bool  # whether the sum is used beside the norm


def flow_of(site: Site) -> Flow:
    return Flow(site.residual, frozenset({site.add, site.view} - {None}), frozenset({site.norm.result}), site.stream)


def flow_of_written(site: WrittenSite) -> Flow:
    return Flow(site.residual, frozenset(site.item(1)), frozenset(site.item(0)), bool(site.item(1)))


def carry(site: Flow, sites: list[Flow]) -> str:
    """ "z" where a later site adds to this one's sum, "y" where it adds to its norm. The last site carries what the one
    before it did; where the graph does not tell, a sum that is used elsewhere too is the stream."""
    residuals = {each.residual for each in sites}
    if site.sums & residuals:
        return "z"
    if site.norms & residuals:
        return "y"
    sums = {node for each in sites for node in each.sums}
    return "z" if site.stream or site.residual in sums else "y"
