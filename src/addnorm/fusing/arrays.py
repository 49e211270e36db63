"""Tensors made of NumPy arrays: to Dynamo an array is a tensor, of whose copy torch would warn, as it does not of an
array's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import NumpyTensorSource
from torch._dynamo.utils import numpy_method_wrapper, numpy_operator_wrapper, numpy_to_tensor_wrapper
from torch.fx import Graph, Node

from .nodes import given

WRAPPERS: tuple[Any, ...] = (numpy_method_wrapper, numpy_operator_wrapper, numpy_to_tensor_wrapper)
OPTIONS = {"data", "dtype", "device", "requires_grad"}


def copy_quietly(graph: Graph) -> None:
    """Let ``torch.tensor(array)`` say nothing in a captured graph either."""
    for node in graph.nodes:
        if node.target is torch.tensor and is_array(given(node, "data").get("data")) and {*node.kwargs} <= OPTIONS:
            node.target = copied


def copied(data: Tensor, **options: Any) -> Tensor:
    """``torch.tensor(data)``."""
    return torch.asarray(data, copy=True, **options)


def is_array(node: Any) -> bool:
    """Whether a node is a NumPy array to the code that was captured."""
    if not isinstance(node, Node):
        return False
    source = getattr(node.meta.get("grapharg"), "source", None)
    return isinstance(source, NumpyTensorSource) or isinstance(node.target, WRAPPERS)
