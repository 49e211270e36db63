"""Calls of `add_norm` in a captured graph: a model that is written with this library has its sites by construction."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .. import reference
from ..arguments import as_call, forward_arguments
from ..call import Call
from ..functional import add_norm
from ..fusing.nodes import is_call

Look = Callable[[Call, Tensor, Tensor, Tensor, Tensor], None]  # of branch, residual, z and y


@dataclass(frozen=True, eq=False)
class WrittenSite:
    """A node of ``addnorm::forward``."""

    node: Node

    @property
    def branch(self) -> Any:
        """The node that is added."""
        return forward_arguments(self.node.args)["x"]

    @property
    def residual(self) -> Any:
        """The node that is added to; None where there is no sum."""
        return forward_arguments(self.node.args)["residual"]

    def item(self, index: int) -> set[Node]:
        """Where a result is taken out: 0 is y, 1 the sum."""
        return {user for user in self.node.users if is_call(user, operator.getitem) and user.args[1] == index}


def written_sites(graph: Graph) -> list[WrittenSite]:
    """In order of execution."""
    return [WrittenSite(node) for node in graph.nodes if is_call(node, torch.ops.addnorm.forward)]


def in_steps(branch: Callable[[Tensor], Tensor], look: Look) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A stand-in for ``addnorm::forward`` that has the branch apart before it is added: `branch` gives what is added in
    its place, `look` sees what came of it. The same dropout mask, the same rounding."""

    def run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        call = as_call(forward_arguments(arguments))
        assert call.residual is not None
        added = branch(reference.stream(replace(call, residual=None)))
        residual = call.residual_scale * call.residual.to(call.compute_dtype)
        z = residual + added
        y = add_norm(
            z, None, call.weight, call.bias, norm=call.norm, eps=call.eps, weight_offset=call.weight_offset,
            out_dtype=call.out_dtype,
        )  # fmt: skip
        look(call, added, residual, z, y)
        return y, z.to(call.stream_dtype), z.new_empty(0)

    return run
