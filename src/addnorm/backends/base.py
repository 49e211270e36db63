"""What a backend is: says what it can do, and does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

from torch import Tensor

from ..call import Call, Gradient


@dataclass(frozen=True)
class Support:
    """Whether a backend can carry out a call, and if not, why.

    A yes with a reason is a yes to the backend's name alone: the automatic choice passes it over.
    """

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok

    @classmethod
    def no(cls, reason: str) -> Support:
        return cls(False, reason)


YES = Support(True)


def no_kernel(norm: Any, norms: Sequence[str]) -> Support:
    return Support.no(f"there is no kernel for norm={norm!r}, only for {' and '.join(map(repr, norms))}")


Function = TypeVar("Function", bound=Callable[..., Any])
# Carries out a call for other tensors of its kinds: from their addresses to new results, None where not asked for.
Plan: TypeAlias = Callable[[Sequence[int | None]], tuple[Any, ...]]


def once_a_graph(function: Function) -> Function:
    """A graph asks once, while it is traced: torch.compiler.assume_constant_result, without importing Dynamo."""
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


class Backend(ABC):
    """Carries out forward and backward calls, on the devices and dtypes that it says it supports."""

    name: ClassVar[str]
    in_python: ClassVar[bool] = False  # its calls may go past torch's dispatcher, as its host time is what matters

    @abstractmethod
    def supports(self, call: Call | Gradient) -> Support:
        """Whether this backend can carry out the call, here and now."""

    @abstractmethod
    def forward(
        self,
        call: Call,
        *,
        keep_stream: bool,
        keep_stats: bool,
        out: Tensor | None = None,
        stream_out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, the stream and the statistics; the last two None unless kept. `out` and `stream_out` receive
        y and the stream where given."""

    @abstractmethod
    def backward(self, call: Gradient) -> dict[str, Tensor | None]:
        """The gradient of each operand, None where it is not needed."""

    def forward_plan(self, call: Call, *, keep_stream: bool, keep_stats: bool) -> Plan | None:
        """The forward of contiguous operands, prepared to be carried out again, from the addresses of `CALL_TENSORS` to
        y, the stream and the statistics; None where that gains nothing."""
        return None

    def backward_plan(self, call: Gradient) -> Plan | None:
        """The same of the backward, from the addresses of `GRADIENT_TENSORS` to the gradients of `OPERANDS`."""
        return None
