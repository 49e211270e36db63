"""`fuse`: Add & Norm of an existing model, fused in place, and undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config
from torch._dynamo.eval_frame import is_dynamo_supported

from ..checks import lookup
from .base import FusedCall
from .checks import check_fusable
from .eager import EagerCall
from .modules import ModulesCall
from .place import PLACES, standing
from .report import Report


def compiled(model: nn.Module) -> FusedCall:
    from .inductor import InductorCall  # brings Inductor, which takes seconds to import

    return InductorCall(model)


MODES: dict[str, Callable[[nn.Module], FusedCall]] = {
    "eager": EagerCall,
    "inductor": compiled,
    "modules": ModulesCall,
}


def automatic() -> str:
    """What mode "auto" is: "eager", which sees most sites and needs no compiler; "modules" where Dynamo can not run.

    >>> automatic()
    'eager'
    """
    return EagerCall.mode if is_dynamo_supported() and not config.disable else ModulesCall.mode


class Handle:
    """A fused model: its report, and the way back. As a context manager it undoes the fusing at the outermost end."""

    def __init__(self, model: nn.Module, call: FusedCall) -> None:
        self.model = model
        self._call = call
        self._depth = 0

    @property
    def mode(self) -> str:
        """The mode that runs: what "auto" chose, or what was asked for."""
        return self._call.mode

    @property
    def report(self) -> Report:
        """Every norm call: what was folded in, or why not. Complete after the first call of the model."""
        return self._call.report

    def undo(self) -> None:
        """Give the model its own call back, under a `Monitor` too. Harmless where that was done before."""
        with PLACES:
            self._call.remove()

    def __enter__(self) -> Handle:
        with PLACES:
            self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with PLACES:
            self._depth -= 1
            if self._depth == 0:
                self.undo()

    def __reduce_ex__(self, _: Any) -> Any:
        name = type(self.model).__name__
        raise TypeError(
            f"the handle of a fused {name} can not be pickled or copied: save or copy the model, which gives the plain "
            "one (model.state_dict(), copy.deepcopy(model)), and fuse that again; or undo() and drop the handle first"
        )

    def __repr__(self) -> str:
        undone = "" if self._call in standing(self.model) else " (undone)"
        return f"{type(self.model).__name__}{undone}: {self.report}"


def fuse(
    model: nn.Module, *, mode: str = "auto", example: Tensor | Sequence[Any] | Mapping[str, Any] | None = None
) -> Handle:
    """Run every Add & Norm of a model as one fused operation. The model is changed in place, for all its callers.

    It finds ``LayerNorm`` and ``RMSNorm``, as modules, functions or written out, after a sum of two tensors, with what
    the branch has before it (a Linear's bias, dropout, LayerScale, stochastic depth), post-norm or pre-norm. A norm
    without a sum is one fused norm. Each site is compared with the original on the first real inputs, dropout left out;
    one that is further from float64 than twice the original's error is left alone. Dropout draws other random numbers
    than torch's, at the same rate, and repeats under ``torch.manual_seed``. On the CPU, but for mode "modules", the
    kernels draw the dropouts beside the sites in this way too, attention's among them.

    Parameters, ``state_dict``, hooks, ``train()`` and ``eval()``, ``to()``, copies and saved files (which are of the
    plain model) and gradients stay as they are. The model is captured again for new hooks and dtypes, and for train or
    eval, grad or not; not for new lengths. Where torch's own fast path for encoder layers runs, it is left to run.

    - ``"eager"``: Dynamo captures the model's code, its sites are rewritten, and the graph runs operation by operation;
      no compiler is needed.
    - ``"inductor"``: tried in the same way at first, then compiled by Inductor with the sites that agree.
    - ``"modules"``: nothing is captured. Modules run fused one by one where sum and norm are in the same one: torch's
      encoder and decoder layers, BERT's output blocks, timm's blocks; norms by themselves.
    - ``"auto"``: "eager"; "modules" where Dynamo can not run or is switched off. `Handle.mode` says which.

    A fused model inside another ``torch.compile`` runs unfused there, with a warning, and its own ``compile()`` raises:
    to compile it yourself, give Inductor an `addnorm.FusePass` instead. What is traced or exported is the plain model.

    Args:
        model: Any module that is called as ``model(...)``.
        mode: One of the above.
        example: Inputs (a tensor, a sequence of arguments or a mapping of keyword arguments, as tokenizers give) to run
            the model on at once, without gradients, so that the report is complete; torch's random state is kept. An
            error of the model's own leaves it as it was, fused where it was fused already.

    Returns:
        A `Handle`: ``handle.report`` tells of every norm call, ``handle.undo()`` or the end of
        ``with fuse(model):`` gives the original back. A model that is fused already gives the handle it has.

    Raises:
        TypeError: model is no module.
        ValueError: an unknown mode; a model that has been compiled, has a `Monitor`, is TorchScript, has tensors on
            the meta device, or is fused in another mode.

    Warns:
        UserWarning: after the first call, if nothing could be fused or the model could not be captured; says why.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> handle = fuse(layer, example=torch.randn(2, 5, 8))
    >>> handle.report.fused
    2
    >>> handle.undo()
    """
    chosen = automatic() if mode == "auto" else mode
    make = lookup("mode", mode, {"auto": MODES[automatic()], **MODES})
    with PLACES:
        present = next((call for call in standing(model) if isinstance(call, FusedCall)), None)
        if present is not None and mode not in ("auto", present.mode):
            already = f"model is fused in mode {present.mode!r} already"
            raise ValueError(f"{already}: undo that first, then mode={chosen!r}")
        call = present or installed(model, make)
    if example is not None:
        try:
            try_out(model, example)
        except BaseException:
            if call is not present:
                call.handle.undo()
            raise
    return call.handle


def installed(model: nn.Module, make: Callable[[nn.Module], FusedCall]) -> FusedCall:
    """A model's call, fused, in its place."""
    check_fusable(model)
    call = make(model)
    call.handle = Handle(model, call)
    call.install()
    return call


def try_out(model: nn.Module, example: Tensor | Sequence[Any] | Mapping[str, Any]) -> None:
    """Run the model once, leaving torch's random state as it was."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        if isinstance(example, Mapping):
            model(**example)
        else:
            model(*(example if isinstance(example, (tuple, list)) else (example,)))
