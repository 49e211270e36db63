"""`FusePass`: the same rewriting as a pass of Inductor, for who compiles the model."""

from __future__ import annotations

from pathlib import Path

from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, GraphModule, Node

from ..functional import add_norm, add_norm_stream
from .rewrite import put
from .sites import find_sites

SOURCES = tuple(str(path) for path in sorted(Path(__file__).parent.glob("*.py")))


class FusePass(CustomGraphPass):
    """Makes every Add & Norm of a model that Inductor compiles one fused operation, forward and backward::

        compiled = torch.compile(model, options={"pre_grad_custom_pass": addnorm.FusePass()})

    The sites are those of `addnorm.fuse`, found in the graph before autograd sees it. They are matched by structure
    alone: while a model is compiled there are no numbers to try them on. A norm without a sum stays Inductor's, which
    fuses it with its neighbours.

    Attributes:
        fused: How many sites the pass has rewritten, over all graphs.
    """

    def __init__(self) -> None:
        self.fused = 0

    def __call__(self, graph: Graph) -> None:
        here: dict[Node, Node] = {node: node for node in graph.nodes}
        moved: dict[Node, Node] = {}

        def now(node: Node | None) -> Node | None:
            return None if node is None else moved.get(node, node)

        for site in find_sites(graph):
            if not site.reason:
                put(graph, site, add_norm_stream if site.stream else add_norm, here, moved, now)
                self.fused += 1
        if graph.owning_module is not None:
            for inner in graph.owning_module.children():
                if isinstance(inner, GraphModule):  # as checkpointing makes them
                    self(inner.graph)
                    inner.recompile()

    def uuid(self) -> bytes:
        """A hash of what decides the rewriting, for Inductor's cache of compiled code."""
        return get_hash_for_files(SOURCES)
