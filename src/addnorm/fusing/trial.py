"""A fused site under trial: it is compared with the original, on the model's own tensors, before it is trusted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..functional import add_norm, add_norm_stream
from .base import is_traced
from .kernels import taken
from .original import original
from .report import EMPTY, Outcome
from .sites import Site

Results = tuple[Tensor, ...]
INSIDE = "it runs inside a transform or a branch, where there are no numbers to try it on"
UNJUDGED = "there was no finite number to judge it by yet"
ROUNDINGS = 8  # of the result's type, beside twice the original's error


class Trial:
    """One site. `run` takes its place in the graph while it is under trial.

    `reason` is None until real numbers were compared, then "" where they agree, else what is wrong.
    """

    def __init__(self, site: Site, named: Callable[[Node, Tensor | None], tuple[str, int]], record: Callable) -> None:
        self.site, self.named, self.record = site, named, record
        self.reason: str | None = None
        self.open = True
        self._verdict = threading.Lock()

    @property
    def fused(self) -> Callable[..., Any]:
        return add_norm_stream if self.site.stream else add_norm

    @property
    def passed(self) -> bool:
        return self.reason == ""

    def run(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """What `add_norm` or `add_norm_stream` gives where that is as good as the original, else what this gives."""
        if self.open:
            self.compare(x, residual, weight, bias, options)
        if not self.passed:
            y, z = original(self.site, dropout=True)(x, residual, weight, bias, **self.beside(options))
            return (y, z) if self.site.stream else y
        return self.fused(x, residual, weight, bias, **options)

    def beside(self, options: dict[str, Any]) -> dict[str, Tensor]:
        """What the branch has beside x."""
        return {name: options[name] for name in self.site.tensors}

    @torch.no_grad()
    def compare(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        """Judge the fused call on these tensors, dropout left out on both sides: its mask is another, as it may be."""
        if is_traced():
            self.reason = self.reason or INSIDE
            self.note(weight, self.reason, "")
            return
        tensors, beside = (x, residual, weight, bias), self.beside(options)
        sober = {name: value for name, value in options.items() if name != "dropout_p"}
        backend = objection = ""
        try:
            result = self.fused(*tensors, **sober)
            backend, objection = taken(*tensors, **sober)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = f"add_norm refuses it: {error}"
        else:
            before = original(self.site, dropout=False)(*tensors, **beside)
            reason = disagreement(result if self.site.stream else (result,), before, self.truth(tensors, beside))
        if reason == "" and objection:
            reason = "; ".join(filter(None, (self.site.reason, objection)))
        if reason is None and x.numel() == 0:  # as will be all that this graph is for: Dynamo captures others anew
            reason = EMPTY
        with self._verdict:
            if not self.reason and reason is not None:  # one that disagreed once is never trusted
                self.reason = reason
            self.note(weight, UNJUDGED if self.reason is None else self.reason, backend)

    def note(self, weight: Tensor | None, reason: str, backend: str) -> None:
        """Record what became of the site."""
        site = self.site
        norm, call = self.named(site.norm.result, weight)
        plain = site.plain and not reason
        self.record(
            Outcome(
                norm,
                call,
                site.norm.kind,
                fused=not reason and not plain,
                folded=site.folded if not reason else (),
                stream=site.stream and not reason,
                plain=plain,
                reason=reason or site.reason,
                backend=backend if not reason else "",
            )
        )

    def truth(self, tensors: tuple[Tensor | None, ...], beside: dict[str, Tensor]) -> Results:
        """The original operations in float64."""
        exact = original(self.site, dropout=False, dtype=torch.float64)
        with torch.autocast(device_type=str(tensors[0].device.type), enabled=False):  # type: ignore[union-attr]
            wide = [None if tensor is None else tensor.double() for tensor in tensors]
            return exact(*wide, **{name: tensor.double() for name, tensor in beside.items()})


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
