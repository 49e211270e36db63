"""What a backend is: says what it can do, and does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

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
# Carries out a call for other tensors of its kinds: from x and the addresses of `OPERANDS` to y and the stream, which
# means nothing unless asked for.
Plan: TypeAlias = Callable[[Tensor, Sequence[int | None]], tuple[Tensor, Tensor]]


class Backend(ABC):
    """Carries out forward and backward calls, on the devices and dtypes that it says it supports."""

    name: ClassVar[str]
    in_python: ClassVar[bool] = False  # its calls may go past torch's dispatcher, as its host time is what matters

    @abstractmethod
    def supports(self, call: Call) -> Support:
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

    def plan(self, call: Call, *, keep_stream: bool) -> Plan | None:
        """The forward of contiguous operands, prepared to be carried out again; None where that gains nothing."""
        return None
