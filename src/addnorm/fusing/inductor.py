"""`FusePass`: the same rewriting as a pass of Inductor, for who compiles the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, GraphModule, Node

from ..functional import add_norm, add_norm_stream
from .dropout import draw_faster
from .measured import inductor_is_faster
from .rewrite import put
from .sites import Site, find_sites

SOURCES = tuple(str(path) for path in sorted(Path(__file__).parent.glob("*.py")))


class FusePass(CustomGraphPass):
    """Fuses the Add & Norms of a model while Inductor compiles it, forward and backward::

        compiled = torch.compile(model, options={"pre_grad_custom_pass": addnorm.FusePass()})

    The sites are those of `addnorm.fuse`, found in the graph before autograd sees it. They are matched by structure
    alone: while a model is compiled there are no numbers to try them on (``addnorm.fuse(model, mode="inductor")`` tries
    them first). Where Inductor's own fusion of the site and its neighbours was measured to be faster, the site is left
    to it; a norm without a sum always is. See ``measured.py`` for the rule and its numbers. On the CPU the kernels draw
    the model's other dropouts too.

    Attributes:
        fused: How many sites were found, over all graphs that Inductor did not take from its cache.
        native: How many of them are left to Inductor's own fusion.
    """

    def __init__(self) -> None:
        self.fused = self.native = 0

    def __call__(self, graph: Graph) -> None:
        here: dict[Node, Node] = {node: node for node in graph.nodes}
        moved: dict[Node, Node] = {}

        def now(node: Node | None) -> Node | None:
            return None if node is None else moved.get(node, node)

        for site in find_sites(graph):
            if self.objection(site):
                self.left(site, "")
            elif reason := self.faster(site):
                self.fused, self.native = self.fused + 1, self.native + 1
                self.left(site, reason)
            else:
                put(graph, site, add_norm_stream if site.stream else add_norm, here, moved, now)
                self.fused += 1
        draw_faster(graph)
        if graph.owning_module is not None:
            for inner in graph.owning_module.children():
                if isinstance(inner, GraphModule):  # as checkpointing makes them
                    self(inner.graph)
                    inner.recompile()

    def objection(self, site: Site) -> str:
        """Why a norm call is no site to be fused; "" if it is one."""
        return site.reason

    def faster(self, site: Site) -> str:
        """Why a site is left to Inductor's own fusion; "" if it is not."""
        return inductor_is_faster(site)

    def left(self, site: Site, reason: str) -> None:
        """A norm call stays in the graph as it is, for a reason if it could have been fused."""

    def uuid(self) -> Any:
        """A hash of what decides the rewriting, for Inductor's cache of compiled code."""
        return get_hash_for_files(SOURCES)
