"""`Monitor`: a few numbers of every site, from every N-th training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..words import count
from .capture import Kind, Place, ProbedCall, Visit
from .tokens import Layout, RealTokens, batch_first, named_inputs, real_tokens

PLACE = "_compiled_call_impl"  # what torch.nn.Module.__call__ calls instead of forward, where it is set
Log = Callable[[dict[str, float]], object]


class Monitor:
    """Watch Add & Norm during training: every N-th pass with gradients is sampled, the others run as before.

    A sampled pass runs from the captured graph, operation by operation and unfused, whether the model was fused or
    compiled; it gives what the model as it was written gives, dropout included. The first one is captured, which takes
    seconds. When its backward has ended (or, if there was none, at the next sampled pass or `close`), `log` gets
    ``{"step": number of the pass, "SITE/NAME": value, ...}`` with, per site:

    - ``residual_ratio``: mean over real tokens of |f| / |x|;
    - ``sigma``: mean over real tokens of sqrt(v + eps), what the norm divides by;
    - ``amax``: max of |x + f|; NaN and infinity show;
    - ``nonfinite``: how many elements of x + f are NaN or infinite;
    - ``gamma_norm``: |weight|;
    - ``gradient_norm``: |dL/d(stream after the site)|, with a backward;
    - ``gamma_gradient_norm``: |weight.grad| after the backward, what was accumulated before included.

    Attach it to what is called: to the result of ``torch.compile(model)``, and after `addnorm.fuse`. Sums are in
    float32 and stay on the device until they are logged.

    Args:
        model: The module whose calls are counted.
        every: Sample passes 0, every, 2 every, ... of those made in training mode with gradients enabled.
        log: Called with each dict, ``wandb.log`` say.

    Raises:
        TypeError: model is no module, or log can not be called.
        ValueError: every is no positive integer, or the model has a monitor already; in a sampled pass, where the
            model has no Add & Norm site.

    >>> model, seen = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), []
    >>> with Monitor(model, every=1, log=seen.append):
    ...     model(torch.randn(2, 5, 8)).sum().backward()
    >>> sorted(name for name in seen[0] if name.startswith("norm1/"))[:3]
    ['norm1/amax', 'norm1/gamma_gradient_norm', 'norm1/gamma_norm']
    """

    def __init__(self, model: nn.Module, *, every: int, log: Log) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}")
        if not callable(log):
            raise TypeError(f"log must be callable, got {type(log).__name__}")
        before = model.__dict__.get(PLACE)
        if isinstance(before, MonitoredCall):
            raise ValueError("model has a monitor already: close that first")
        self.model, self._before = model, before
        self._had = PLACE in model.__dict__
        self._call = MonitoredCall(model, before or model._call_impl, every, log)
        model.__dict__[PLACE] = self._call

    def close(self) -> None:
        """Log what is waiting, and give the model its own call back. Harmless where that was done before.

        Warns where the model was called and no pass counted: nothing was logged.
        """
        self._call.flush()
        if self.model.__dict__.get(PLACE) is not self._call:
            return
        if self._had:
            self.model.__dict__[PLACE] = self._before
        else:
            del self.model.__dict__[PLACE]
        if self._call.passed_over and not self._call.step:
            warnings.warn(
                "addnorm.Monitor logged nothing: it samples calls in training mode with gradients enabled, and of "
                f"{count(self._call.passed_over, 'call')} none was one (model.train(), no torch.no_grad())",
                stacklevel=2,
            )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MonitoredCall:
    """What a monitored model has in place of its call: it counts, and is the probe of the sampled passes."""

    def __init__(self, model: nn.Module, before: Callable[..., Any], every: int, log: Log) -> None:
        self.before, self.every, self.log = before, every, log
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
        if torch.compiler.is_compiling():
            return self.before(*args, **kwargs)
        if not (self._outer.training and torch.is_grad_enabled()):
            self.passed_over += 1
            return self.before(*args, **kwargs)
        step, self.step = self.step, self.step + 1
        return self.before(*args, **kwargs) if step % self.every else self.sample(step, args, kwargs)

    def sample(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One pass with the probes looking."""
        self.flush()
        self._probed = self._probed or ProbedCall(self.model, self)
        self._real, self._sampled = real_tokens(named_inputs(self.model, args, kwargs)), step
        self._looking = self._waiting = True
        try:
            output = self._probed(*args, **kwargs)
        finally:
            self._looking = False  # what a checkpoint computes again was seen
        if not self._sums:
            self._waiting = False
            raise ValueError(self._probed.no_site())
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
        carried = visit.carried(kind)
        if carried.requires_grad:
            carried.register_hook(lambda gradient: self.arrive(site, gradient))

    def arrive(self, site: str, gradient: Tensor) -> None:
        """The gradient of a site's stream; when the whole backward is over, all is logged."""
        if not self._waiting:
            return
        self._sums[f"{site}/gradient_norm"] = gradient.detach().float().norm()
        torch.autograd.Variable._execution_engine.queue_callback(self.finish)  # pyright: ignore

    def finish(self) -> None:
        """After a backward; queued once by each site."""
        if self._waiting:
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
    real, _, _ = layout.rows(z.shape[:-1])
    weights = torch.ones(z.shape[:-1], device=z.device) if real is None else real.to(z.device).view(z.shape[:-1])
    weights = weights.float()
    count = weights.sum()
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    ratio = torch.linalg.vector_norm(x, dim=-1, dtype=wide) / torch.linalg.vector_norm(residual, dim=-1, dtype=wide)
    spread = z.to(wide).var(-1, correction=0) if kind.norm == "layer" else z.to(wide).square().mean(-1)
    largest, smallest = z.amax(), z.amin()
    return {
        "residual_ratio": torch.where(weights > 0, ratio, 0.0).sum() / count,
        "sigma": torch.where(weights > 0, (spread + kind.eps).sqrt(), 0.0).sum() / count,
        "amax": torch.maximum(largest, -smallest),
        "nonfinite": (~z.isfinite()).sum(),
    }
