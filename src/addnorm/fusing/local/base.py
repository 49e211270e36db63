"""A kind of module that can run fused by itself, and what one of its norms becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

# torch's own forwards, which others may replace
FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.LayerNorm, nn.RMSNorm, nn.Linear, nn.Dropout)
}


@dataclass(frozen=True)
class Part:
    """One norm of the module: its attribute there ("" for the module itself), and what it takes in."""

    norm: str
    kind: str  # "layer" or "rms"
    folded: tuple[str, ...] = ()
    stream: bool = False


class Local(ABC):
    """One module, fused. Its attributes are read at each call, so that what changes in the module holds here."""

    methods: ClassVar[tuple[str, ...]] = ("forward",)  # of the module, which the fused forward stands for
    drops: ClassVar[tuple[str, ...]] = ()  # submodules that drop elements or rows in training
    bypassed: ClassVar[tuple[str, ...]] = ()  # submodules that the fused forward does not call as modules

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    @abstractmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether the module looks like one of this kind. Its results are compared with the module's before use."""

    @classmethod
    def readings(cls, module: nn.Module) -> list[Local]:
        """How the module may be read; numbers tell which is right."""
        return [cls(module)]

    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The norms that the fused forward replaces, in order."""

    def probe(self, x: Tensor) -> Tensor:
        """What is to stand for an argument where a copy of the module with other vectors is compared."""
        return x

    def left_to(self, *args: Any, **kwargs: Any) -> str:
        """Why the module's own forward is to run, here and now with these arguments; "" where the fused one may."""
        return ""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, fused."""


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly this class of torch's, with torch's own forward."""
    return type(module) is kind and "forward" not in module.__dict__ and kind.forward is FORWARDS[kind]


def dropped(dropout: nn.Module) -> dict[str, Any]:
    """A dropout's arguments of `add_norm`, as it is set now; a rate of 1, which that does not take, is a scale of 0."""
    rate = dropout.p if dropout.training else 0.0
    return {"branch_scale": 0.0} if rate == 1 else {"dropout_p": rate}


def affine(norm: nn.Module) -> dict[str, Any]:
    """A LayerNorm's arguments of `add_norm`."""
    return {"weight": norm.weight, "bias": norm.bias, "eps": norm.eps}
