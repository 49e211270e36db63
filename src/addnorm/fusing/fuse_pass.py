"""`FusePass`: the same rewriting as a pass of Inductor, for who compiles the model."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, GraphModule, Node

from ..backends import native
from ..functional import add_norm, add_norm_stream
from .dropout import draw_faster
from .kernels import taken
from .measured import left_to_inductor
from .nodes import example
from .report import Outcome, Report
from .rewrite import put
from .sites import Site, fusible_sites

SOURCES = tuple(str(path) for path in sorted(Path(__file__).parent.glob("*.py")))


class FusePass(CustomGraphPass):
    """Fuses the Add & Norms of a model while Inductor compiles it, forward and backward::

        fuse_pass = addnorm.FusePass()
        compiled = torch.compile(model, options={"pre_grad_custom_pass": fuse_pass})
        compiled(x)  # the first call compiles
        print(fuse_pass.report)

    The sites are those of `addnorm.fuse`, found in the graph before autograd sees it. They are matched by structure
    alone: while a model is compiled there are no numbers to try them on (``addnorm.fuse(model, mode="inductor")`` tries
    them first). On the CPU a site without dropout, and so every norm without a sum, is left to Inductor's own fusion.
    See ``measured.py`` for the rule and its numbers. On the CPU the kernels draw the model's other dropouts too.

    Attributes:
        fused: How many sites were found, over all graphs that Inductor did not take from its cache.
        native: How many of them are left to Inductor's own fusion.
        report: Every norm call, as in `addnorm.fuse`'s; of a graph that is compiled more than once the latest counts.
    """

    def __init__(self) -> None:
        self.fused = self.native = 0
        self.report = Report()

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.report}"

    def __call__(self, graph: Graph) -> None:
        self.rewrite(graph, Counter())
        self.report.complete = True

    def rewrite(self, graph: Graph, calls: Counter[str]) -> None:
        """Of one graph and those inside it; `calls` counts each module's norm calls."""
        now: dict[Node, Node] = {node: node for node in graph.nodes}
        for site in fusible_sites(graph):
            objection = self.objection(site)
            faster = "" if objection else self.faster(site)
            self.fused, self.native = self.fused + (not objection), self.native + bool(faster)
            self.note(site, objection, faster, calls)
            if not objection and not faster:
                put(graph, site, add_norm_stream if site.stream else add_norm, now)
        draw_faster(graph)
        if graph.owning_module is not None:
            for inner in graph.owning_module.children():
                if isinstance(inner, GraphModule):  # as checkpointing makes them
                    self.rewrite(inner.graph, calls)
                    inner.recompile()

    def objection(self, site: Site) -> str:
        """Why a norm call is no site to be fused; "" if it is one."""
        x = example(site.x)
        return site.reason if site.reason or x is None else taken(x, norm=site.norm.kind)[1]

    def faster(self, site: Site) -> str:
        """Why a site is left to Inductor's own fusion; "" if it is not."""
        return left_to_inductor(site)

    def note(self, site: Site, objection: str, faster: str, calls: Counter[str]) -> None:
        """Report what becomes of a norm call."""
        name, fused = path(site.norm.result), not objection
        self.report.record(
            Outcome(
                name,
                calls[name],
                site.norm.kind,
                fused,
                folded=site.folded if fused else (),
                stream=site.stream and fused,
                reason=objection or faster,
                backend="inductor" if objection or faster else "",
            )
        )
        calls[name] += 1

    def uuid(self) -> Any:
        """A hash of what decides the rewriting, for Inductor's cache of compiled code."""
        return get_hash_for_files(SOURCES, extra=native.REASON)


def path(node: Node) -> str:
    """The path of the module that a node was traced in, from the model that is compiled on."""
    way = next((entry[0] for entry in reversed((node.meta.get("nn_module_stack") or {}).values())), "")
    return re.sub(r"^L\['\w+'\]\.?|^G\['|'\]", "", way)
