"""`Monitor`: a few numbers of every site, from every N-th training step."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_module
from ..fusing.base import is_traced
from ..fusing.place import PLACES, InPlace, put, take
from ..norms import policy
from ..words import count
from .capture import Kind, Place, ProbedCall, Visit
from .tokens import Layout, RealTokens, batch_first, real_tokens

Log = Callable[[dict[str, float]], object]
MONITORED: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # the models that have a monitor; under PLACES


class Monitor:
    """Watch Add & Norm during training: every N-th pass with gradients is sampled, the others run as before.

    A sampled pass runs from the captured graph, operation by operation and unfused, whether the model was fused or
    compiled; it gives what the model as it was written gives, dropout included. The first one is captured, which takes
    seconds. When its first backward has ended (or, if none has begun, at the next sampled pass or `close`), `log` gets
    ``{"step": number of the pass, "SITE/NAME": value, ...}`` with, per site:

    - ``residual_ratio``: mean over real tokens of |f| / |x|;
    - ``sigma``: mean over real tokens of sqrt(v + eps), what the norm divides by, where it does;
    - ``amax``: max of |x + f|; NaN and infinity show;
    - ``nonfinite``: how many elements of x + f are NaN or infinite;
    - ``gamma_norm``: |weight|;
    - ``gradient_norm``: |dL/d(stream after the site)|, with a backward, in this pass alone;
    - ``gamma_gradient_norm``: |weight.grad| after the backward, what was accumulated before, or in the same backward
      from other passes, included; of a weight that the model computes, its gradient in this backward.

    A pass whose backward comes after the next sampled pass is logged without gradients: of several passes that one
    loss is of, the last sampled one has them. Of a pass without a token there are no means, and no ``amax``.

    Attach it to what is called: to the result of ``torch.compile(model)``, and after `addnorm.fuse`, which may be
    undone before `close` or after it. A pass inside a ``torch.func`` transform, a trace or a torch mode that sees every
    operation is not sampled: the next one is. Sums are in float32 and stay on the device until they are logged.

    Args:
        model: The module whose calls are counted.
        every: Sample passes 0, every, 2 every, ... of those made in training mode with gradients enabled.
        log: Called with each dict, ``wandb.log`` say.

    Raises:
        TypeError: model is no module, or log can not be called.
        ValueError: every is no positive integer, or the model, a part of it or a model that it is a part of has a
            monitor already; in a sampled pass, where the model has no Add & Norm site, is TorchScript or has tensors
            on the meta device.

    >>> model, seen = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), []
    >>> with Monitor(model, every=1, log=seen.append):
    ...     model(torch.randn(2, 5, 8)).sum().backward()
    >>> sorted(name for name in seen[0] if name.startswith("norm1/"))[:3]
    ['norm1/amax', 'norm1/gamma_gradient_norm', 'norm1/gamma_norm']
    """

    def __init__(self, model: nn.Module, *, every: int, log: Log) -> None:
        check_module("model", model)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}")
        if not callable(log):
            raise TypeError(f"log must be callable, got {type(log).__name__}")
        self.model, self._call = model, MonitoredCall(model, every, log)
        with PLACES:
            for other in MONITORED:  # of two, one in the other, the inner one would miss what the outer one samples
                if other is model:
                    raise ValueError("model has a monitor already: close that first")
                if other in {*model.modules()} or model in {*other.modules()}:
                    raise ValueError(
                        f"model and {type(other).__name__}, which has a monitor already, are one in the other: one "
                        "monitor tells of all sites"
                    )
            put(model, self._call)
            MONITORED.add(model)
        self._closed = False

    def close(self) -> None:
        """Log what is waiting, and give the model its own call back. Harmless where that was done before.

        Warns where nothing was logged, or no more since another took the model's place of call.
        """
        if missed := self._end():
            warnings.warn(missed, stacklevel=2)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        missed = self._end()
        if missed and error is None:
            warnings.warn(missed, stacklevel=2)

    def _end(self) -> str:
        """Close; what there is to warn of, the first time."""
        if self._closed:
            return ""
        self._closed, call = True, self._call
        try:
            call.flush()
        finally:  # `log` may raise
            with PLACES:
                stood = take(self.model, call)
                MONITORED.discard(self.model)
        if not stood:
            return (
                f"addnorm.Monitor saw {count(call.step, 'call')} and no more: another has taken the place of the "
                "model's call, as model.compile() does: attach the monitor after that"
            )
        if call.step:
            return ""
        if not call.passed_over:
            return (
                "addnorm.Monitor logged nothing: the model was not called, or only inside of what torch.compile made "
                "of a call around it: attach the monitor to what is called"
            )
        return (
            "addnorm.Monitor logged nothing: it samples calls in training mode with gradients enabled, and of "
            f"{count(call.passed_over, 'call')} none was one (model.train(), no torch.no_grad(), no torch.func "
            "transform or trace around it)"
        )


class MonitoredCall(InPlace):
    """What a monitored model has in place of its call: it counts, and is the probe of the sampled passes."""

    objection = "has an addnorm.Monitor: close that first, and attach another after fusing"

    def __init__(self, model: nn.Module, every: int, log: Log) -> None:
        self.every, self.log = every, log
        self.model = getattr(model, "_orig_mod", model)
        self.batch_first = batch_first(self.model)
        self.step = self.passed_over = 0
        self._outer = model
        self._probed: ProbedCall | None = None
        self._real = RealTokens()
        self._looking = self._waiting = False
        self._sampled = 0
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.before or self._outer._call_impl
        if torch.compiler.is_compiling():
            return call(*args, **kwargs)
        due = self.step % self.every == 0
        if not (self._outer.training and torch.is_grad_enabled()) or (due and is_traced()):
            self.passed_over += 1
            return call(*args, **kwargs)
        step, self.step = self.step, self.step + 1
        return self.sample(step, args, kwargs) if due else call(*args, **kwargs)

    def sample(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One pass with the probes looking."""
        self.flush()
        self._probed = self._probed or ProbedCall(self.model, self)
        self._real, self._sampled = real_tokens(self.model, args, kwargs), step
        self._looking = True
        try:
            output = self._probed(*args, **kwargs)
            if not self._sums:
                raise ValueError(self._probed.no_site())
            self._waiting = True
        finally:
            self._looking = False  # what a checkpoint computes again was seen
            if not self._waiting:  # the pass failed
                self._sums, self._weights = {}, {}
        return output

    def branch(self, x: Tensor) -> Tensor:
        return x

    def visit(self, place: Place, kind: Kind, visit: Visit) -> None:
        if not self._looking:
            return
        site = str(place)
        layout = Layout(self._sampled, self._real.of_module(place.norm), self.batch_first)
        with torch.no_grad(), torch.autocast(visit.z.device.type, enabled=False):
            for name, value in quick(kind, visit, layout).items():
                self._sums[f"{site}/{name}"] = value
            if visit.weight is not None:
                self._sums[f"{site}/gamma_norm"] = visit.weight.detach().norm()
                self._weights[site] = visit.weight
                if visit.weight.requires_grad:
                    visit.weight.retain_grad()  # of one that the model computes
        carried = visit.carried(kind)
        if carried.requires_grad:
            carried.register_hook(partial(self.arrive, self._sampled, site))

    def awaits(self, step: int) -> bool:
        """Whether the backward of that pass is to be logged: that of another may come first, or come too late."""
        return self._waiting and step == self._sampled

    def arrive(self, step: int, site: str, gradient: Tensor) -> None:
        """The gradient of a site's stream; when the whole backward is over, all is logged."""
        if not self.awaits(step):
            return
        self._sums[f"{site}/gradient_norm"] = gradient.detach().float().norm()
        torch.autograd.Variable._execution_engine.queue_callback(partial(self.finish, step))  # pyright: ignore

    def finish(self, step: int) -> None:
        """After a backward; queued once by each site."""
        if self.awaits(step):
            for site, weight in self._weights.items():
                if weight.grad is not None:
                    self._sums[f"{site}/gamma_gradient_norm"] = weight.grad.float().norm()
            self.flush()

    def flush(self) -> None:
        """Log what was sampled: the one moment at which numbers leave the device."""
        if not self._waiting:
            return
        self._waiting = False
        values = torch.stack([value.double() for value in self._sums.values()]).tolist() if self._sums else []
        data = dict(zip(self._sums, values, strict=True))
        self._sums, self._weights = {}, {}
        self.log({"step": self._sampled, **data})


def quick(kind: Kind, visit: Visit, layout: Layout) -> dict[str, Tensor]:
    """The forward's numbers, each a 0-d tensor: a handful of reductions in float32, and no synchronisation."""
    x, residual, z = (tensor.detach() for tensor in (visit.x, visit.residual, visit.z))
    nonfinite = (~z.isfinite()).sum()
    if not z.numel():  # no mean, and no largest value
        return {"nonfinite": nonfinite}
    real, _, _ = layout.rows(z.shape[:-1])
    weights = torch.ones(z.shape[:-1], device=z.device) if real is None else real.to(z.device).view(z.shape[:-1])
    weights = weights.float()
    count = weights.sum()
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    size, stream = (torch.linalg.vector_norm(tensor, dim=-1, dtype=wide) for tensor in (x, residual))
    means = {"residual_ratio": torch.where(size == 0, 0.0, size / stream)}
    if policy(kind.norm).stats_per_row:  # of which the last is 1 / s; DyT and Derf divide by nothing
        means["sigma"] = policy(kind.norm).statistics(z.to(wide), kind.eps)[..., -1].reciprocal()
    largest, smallest = z.amax(), z.amin()
    return {
        **{name: torch.where(weights > 0, value, 0.0).sum() / count for name, value in means.items()},
        "amax": torch.maximum(largest, -smallest),
        "nonfinite": nonfinite,
    }
