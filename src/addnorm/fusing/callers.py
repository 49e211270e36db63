"""Which module of a model calls a norm, and how often in one pass."""

from __future__ import annotations

import threading
import weakref

from torch import Tensor, nn
from torch.fx import Node

ROOT = "L['model']"  # how Dynamo names the argument of a captured function that the model is


class Pass(threading.local):
    """What is known of the pass through the model that this thread makes; others may make theirs at the same time."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.calls: dict[str, int] = {}  # how many norm calls each module made, by its path
        self.captured = False  # whether a captured piece ran

    def count(self, path: str) -> int:
        """One more norm call; how many there were before."""
        before = self.calls.get(path, 0)
        self.calls[path] = before + 1
        return before


class Callers:
    """The modules of a model by the paths that captured code gives for them. Captured code has it, and must not hold
    the model (captured.py)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self.now = Pass()
        self.look_over()

    def look_over(self) -> None:
        """Note the modules as they are now, and whose each parameter is."""
        model = self._model()
        modules = {} if model is None else dict(model.named_modules())
        self._paths = {str(id(module)): name for name, module in modules.items()}
        self._owners = {id(p): name for name, module in modules.items() for p in module.parameters(recurse=False)}

    def named(self, norm: Node, weight: Tensor | None) -> tuple[str, int]:
        """The path of the module that called a norm with this weight, and how many norm calls it made before."""
        name = self.path(norm, weight)
        return name, self.now.count(name)

    def path(self, node: Node, weight: Tensor | None = None) -> str:
        """The path of the module that a node was traced in.

        It goes by the module itself: what Dynamo calls the way to it may lead through a wrapper around a forward. A
        piece of code that serves several modules has no way from the model: there the weight tells whose call it is.
        """
        stack = node.meta.get("nn_module_stack") or {}
        key, way = next(((key, entry[0]) for key, entry in reversed(stack.items())), ("", ""))
        found = self._paths.get(key.partition("@")[0]) if way.startswith(ROOT) else None  # "@1": a second call
        return self._owners.get(id(weight), way) if found is None else found
