"""`inspect`: run a model over batches and measure every Add & Norm site."""

from __future__ import annotations

import gc
import inspect as signatures
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_module
from ..fusing.eager import summary
from ..fusing.fast_path import FAST_PATH
from .base import Finding
from .capture import Place, ProbedCall
from .inspection import Inspection, Overhead, SiteResult
from .measurements import MEASUREMENTS
from .padding import repadded
from .recorder import Recorder
from .tokens import RealTokens, batch_first, real_tokens

Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Loss = Callable[..., Tensor]


def inspect(model: nn.Module, batches: Iterable[Batch] | Batch, *, loss: Loss | None = None) -> Inspection:
    """What Add & Norm does in a model: every measurement at every site, and what is suspicious about it.

    A site is ``z = residual + x; y = norm(z)``, as `addnorm.fuse` finds it, or a call of `add_norm` (an `AddNorm`, a
    `Stack`); a model that is fused or compiled is inspected as it was written. It runs in eval mode and operation by
    operation, and is left as it was: its mode, its gradients, its hooks. Only real tokens are measured, in float64:
    those of the attention mask (``attention_mask``, ``src_key_padding_mask``, ``key_padding_mask`` or ``padding_mask``,
    ``(sequences, tokens)``), all of them without one. Tokens with NaN or infinity are counted, and left out of the
    rest. Memory does not grow with the number of batches.

    Args:
        model: Any module that has sites.
        batches: The inputs of each pass: a tensor, a tuple of arguments or a dict of keyword arguments. Read once. A
            tensor or a dict itself is one batch; a list or a tuple is always a sequence of batches.
        loss: ``loss(output)``, or ``loss(output, batch)`` where its second positional parameter has no default; gives a
            scalar. With it gradients are measured too, at the cost of two backward passes a batch, one of them with
            all branches detached. What runs under ``torch.no_grad()`` has none.

    Returns:
        An `Inspection`: ``.findings`` are the warnings, each with what to do, ``.sites`` the values,
        ``.to_dict()`` everything.

    Raises:
        TypeError: model is no module, batches are of another kind, or loss is no function.
        ValueError: no batch, no real token, no Add & Norm site, a model that is TorchScript or has tensors on the
            meta device, a loss that is no scalar with a gradient, or a loss where there are no gradients: no parameter
            requires one, or ``torch.inference_mode()``.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> found = inspect(layer, [torch.randn(2, 5, 8)])
    >>> [site.site for site in found.sites], found.findings
    (['norm1', 'norm2'], ())
    """
    check(model, batches, loss)
    if isinstance(batches, (Tensor, Mapping)):
        batches = [batches]
    model = getattr(model, "_orig_mod", model)
    start = time.perf_counter()
    run = Run(model, loss)
    count = 0
    with undisturbed(model), torch.set_grad_enabled(loss is not None):
        for batch in batches:
            run.take(batch, count)
            count += 1
    if not count:
        raise ValueError("batches is empty: there is nothing to inspect")
    return run.result(count, time.perf_counter() - start)


def check(model: Any, batches: Any, loss: Any) -> None:
    check_module("model", model)
    if isinstance(batches, (str, bytes)) or not isinstance(batches, Iterable):
        raise TypeError(
            "batches must be a batch or an iterable of them, each a tensor, a tuple or a dict; got "
            f"{type(batches).__name__}"
        )
    if loss is None:
        return
    if not callable(loss):
        raise TypeError(f"loss must be a function of the output, or of output and batch, got {type(loss).__name__}")
    if torch.is_inference_mode_enabled():
        raise ValueError("a loss needs gradients, and torch.inference_mode() records none: call inspect outside of it")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("a loss needs gradients, and no parameter of the model requires one")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, and none of torch's shortcuts around the norms; afterwards each module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with FAST_PATH.off():
            yield
    finally:
        for module, training in before:  # the outer ones first: train() sets those inside too
            if module.training != training:
                module.train(training)  # which may do more, as eval() may have
                module.training = training


class Run:
    """An inspection under way."""

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        self.model, self.loss = model, loss
        self.recorder = Recorder()
        self.call = ProbedCall(model, self.recorder)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.recorder.batch_first = batch_first(model)
        self.leak_tried = False
        self.times: dict[str, float] = {}

    def take(self, batch: Any, number: int) -> None:
        """Measure one batch."""
        args, kwargs = arguments(batch)
        real = real_tokens(self.model, args, kwargs)
        self.recorder.real, self.recorder.number = real, number
        if number == 0:
            self.begin(batch)
        with self.timed("inspected") if number == 0 else nullcontext():
            self.forward_backward(batch, self.recorder.measure, identity=False)
            if self.loss is not None:
                self.forward_backward(batch, self.recorder.measure, identity=True)
        padded = [mask for mask in (real.inputs, real.decoder) if mask is not None and not mask.all()]
        if padded and not self.leak_tried:
            self.leak_tried = True
            self.repad(args, kwargs, real)

    def begin(self, batch: Any) -> None:
        """Before the first batch: a plain pass, where the model may say what it thinks of the batch; the capture; and a
        plain pass by the clock."""
        args, kwargs = arguments(batch)
        self.model._call_impl(*args, **kwargs)
        with self.timed("capture"):
            output = self.call(*args, **kwargs)
        if not self.recorder.sites:
            raise ValueError(self.call.no_site())
        if self.loss is not None:
            self.backward(output, batch)
        with self.timed("plain"):
            output = self.model._call_impl(*args, **kwargs)
            if self.loss is not None:
                self.backward(output, batch)

    def forward_backward(self, batch: Any, look: Callable[..., None], *, identity: bool) -> None:
        recorder = self.recorder
        args, kwargs = arguments(batch)
        recorder.look, recorder.backward, recorder.identity = look, self.loss is not None, identity
        recorder.leaves.clear()
        try:
            output = self.call(*args, **kwargs)
            recorder.look = recorder.ignore  # what a checkpoint computes again was seen
            if self.loss is not None:
                self.backward(output, batch)
        finally:
            recorder.look, recorder.backward, recorder.identity = recorder.ignore, False, False
            recorder.leaves.clear()

    def backward(self, output: Any, batch: Any) -> None:
        """Gradients as the hooks at the sites see them; none is left on a parameter."""
        assert self.loss is not None
        value = self.loss(*(output, batch)[: positional(self.loss)])
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"loss must give a scalar tensor, got {described(value)}")
        if not value.requires_grad:
            raise ValueError("loss must give a scalar with a gradient, got one that depends on no parameter")
        torch.autograd.grad(value.sum(), [*self.parameters, *self.recorder.leaves], allow_unused=True)

    @torch.no_grad()
    def repad(self, args: tuple[Any, ...], kwargs: dict[str, Any], real: RealTokens) -> None:
        """Run the batch as it is and with something else in the padding, which the model may not take."""
        recorder = self.recorder
        some, named = repadded(self.model, args, kwargs, real, batch_first=recorder.batch_first)
        before = self.kept(args, kwargs)
        try:
            after = self.kept(some, named)
        except Exception as error:  # of any kind
            warnings.warn(
                "padding leakage is not measured: with entries of real tokens in its padding the model raises "
                f"{type(error).__name__}: {summary(str(error))}",
                stacklevel=5,
            )
        else:
            recorder.compare(before, after)

    def kept(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Place, Tensor]:
        """What comes out of every site in one pass."""
        recorder = self.recorder
        recorder.look, recorder.kept = recorder.keep, {}
        try:
            self.call(*args, **kwargs)
        finally:
            recorder.look = recorder.ignore
        found, recorder.kept = recorder.kept, {}
        return found

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """By the clock. Garbage waits: that of the capture takes longer to collect than a small model's pass."""
        collects = gc.isenabled()
        gc.disable()
        try:
            start = time.perf_counter()
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times[name] = time.perf_counter() - start
        finally:
            if collects:
                gc.enable()

    def result(self, batches: int, total: float) -> Inspection:
        records = {str(place): site for place, site in self.recorder.sites.items()}
        overall: dict[str, float] = {}
        findings: list[Finding] = []
        for name, measurement in MEASUREMENTS.items():
            sites = {site: record.measured[name] for site, record in records.items()}
            whole = measurement.overall(list(sites.values()))
            if whole is not None:
                overall[name] = whole
            findings += measurement.findings(sites)
        if not findings and not any(record.tokens for record in records.values()):
            raise ValueError("batches have no real token: they are empty, or the mask calls every token padding")
        return Inspection(
            model=type(self.model).__name__,
            batches=batches,
            backward=self.loss is not None,
            sites=tuple(
                SiteResult(
                    site=name,
                    norm=record.kind.norm,
                    carry=record.kind.carry,
                    eps=record.kind.eps,
                    width=record.width,
                    tokens=record.tokens,
                    padding=record.padding,
                    values={each: measured.value for each, measured in record.measured.items()},
                    details={each: more for each, measured in record.measured.items() if (more := measured.details())},
                )
                for name, record in records.items()
            ),
            overall=overall,
            findings=tuple(sorted(findings, key=lambda finding: -finding.urgency)),
            skipped={str(place): reason for place, reason in self.call.skipped.items()},
            breaks=self.call.breaks,
            overhead=Overhead(self.times["plain"], self.times["inspected"], self.times["capture"], total),
        )


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as the arguments of the model's call."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    raise TypeError(f"a batch must be a tensor, a tuple or a dict, got {type(batch).__name__}")


def positional(function: Callable[..., Any]) -> int:
    """How many of ``(output, batch)`` a loss gets: two where its second positional parameter has no default.

    >>> positional(lambda output, weight=1.0: ...), positional(lambda output, batch: ...), positional(lambda *both: ...)
    (1, 2, 2)
    """
    try:
        signature = signatures.signature(function.forward if isinstance(function, nn.Module) else function)
    except ValueError:  # a builtin that does not tell
        return 1
    taken = [each for each in signature.parameters.values() if each.kind not in (each.KEYWORD_ONLY, each.VAR_KEYWORD)]
    second = taken[1:] or [each for each in taken if each.kind is each.VAR_POSITIONAL]
    return 2 if second and second[0].default is signatures.Parameter.empty else 1


def described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
