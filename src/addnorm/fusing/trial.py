"""A fused site under trial: it is compared with the original, on the model's own tensors, before it is trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional import add_norm, add_norm_stream, explain_dispatch
from .report import Outcome
from .rewrite import original
from .sites import Site

Results = tuple[Tensor, Tensor]
ROUNDINGS = 8  # of the result's type, beside twice the original's error


class Trial:
    """One site. `run` takes its place in the graph while it is under trial.

    `reason` is None until real numbers were compared, then "" where they agree, else what is wrong.
    """

    def __init__(self, site: Site, named: Callable[[Site, Tensor | None], tuple[str, int]], record: Callable) -> None:
        self.site, self.named, self.record = site, named, record
        self.reason: str | None = None
        self.open = True

    @property
    def fused(self) -> Callable[..., Any]:
        return add_norm_stream if self.site.stream else add_norm

    @property
    def passed(self) -> bool:
        return self.reason == ""

    def run(self, x: Tensor, residual: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, **options):
        """What `add_norm` or `add_norm_stream` would give; what the original gives where the two differ."""
        if self.open:
            self.compare(x, residual, weight, bias, options)
        if self.reason:
            y, z = original(self.site, dropout=True)(x, residual, weight, bias)
            return (y, z) if self.site.stream else y
        return self.fused(x, residual, weight, bias, **options)

    @torch.no_grad()
    def compare(
        self, x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, options: dict[str, Any]
    ) -> None:
        """Judge the fused call on these tensors, dropout left out on both sides: its mask is another, as it may be."""
        tensors = (x, residual, weight, bias)
        sober = {name: value for name, value in options.items() if name != "dropout_p"}
        backend = ""
        try:
            result = self.fused(*tensors, **sober)
            backend = explain_dispatch(*tensors, **sober).chosen
        except (TypeError, ValueError, RuntimeError) as error:
            reason = f"add_norm refuses it: {error}"
        else:
            before = original(self.site, dropout=False)(*tensors)
            reason = disagreement(result if self.site.stream else (result,), before, self.truth(*tensors))
        norm, call = self.named(self.site, weight)
        self.record(
            Outcome(
                norm,
                call,
                self.site.norm.kind,
                fused=not reason,
                folded=self.site.folded if not reason else (),
                stream=self.site.stream and not reason,
                reason=reason or "",
                backend=backend if not reason else "",
            )
        )
        if not self.reason and reason is not None:  # one that disagreed once is never trusted
            self.reason = reason

    def truth(self, *tensors: Tensor | None) -> Results:
        """The original operations in float64."""
        exact = original(self.site, dropout=False, dtype=torch.float64)
        with torch.autocast(device_type=str(tensors[0].device.type), enabled=False):  # type: ignore[union-attr]
            return exact(*(None if tensor is None else tensor.double() for tensor in tensors))


def disagreement(fused: tuple[Tensor, ...], before: Results, truth: Results) -> str | None:
    """What is wrong with fused results; "" where they are as good as the original's, None where nothing can be judged.

    As good: error against float64 <= 2 x the original's + a few roundings of the result's type x the largest value.
    """
    judged = False
    for name, after, old, exact in zip(("result", "sum"), fused, before, truth, strict=False):
        if (after.shape, after.dtype) != (old.shape, old.dtype):
            return f"its {name} is {after.dtype} {tuple(after.shape)}, was {old.dtype} {tuple(old.shape)}"
        known = exact.isfinite()
        if not known.any():
            continue
        judged = True
        error, allowed = distance(after, exact, known), distance(old, exact, known)
        scale = exact[known].abs().max().item()
        limit = 2 * allowed + ROUNDINGS * torch.finfo(after.dtype).eps * scale
        if not error <= limit:  # a NaN is a disagreement too
            return f"its {name} is {error:.2g} off float64, the original's {allowed:.2g}; {limit:.2g} was allowed"
    return "" if judged else None


def distance(value: Tensor, exact: Tensor, known: Tensor) -> float:
    return (value.double() - exact)[known].abs().max().item()
