"""Who is measured on a GPU, beside addnorm and torch. What is not installed is left out and says so."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .cases import EPS, Case
from .contenders import Addnorm, Contender, Eager, RefusalError, Torchlike, composite
from .inputs import Inputs


class Autotuned(Torchlike):
    """torch.compile at its best: autotuned, for exactly this shape, the backward's two kinds of sum in one kernel."""

    name = "compile"
    label = "torch.compile, max-autotune"
    options: ClassVar[dict[str, Any]] = {"max_autotune": True, "triton.mix_order_reduction": True}

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        from torch._functorch import config  # these take seconds to import
        from torch._inductor import list_options

        torch._dynamo.reset()  # or the shapes before this one count against its limit of recompilations
        known = set(list_options())
        options = {name: value for name, value in self.options.items() if name in known}
        compiled = torch.compile(composite(case), fullgraph=True, dynamic=False, options=options)
        call = partial(compiled, inputs.x, inputs.residual, inputs.weight, inputs.bias)
        # What the forward kept must last, for a backward that is timed by itself.
        with config.patch(donated_buffer=False):
            call()  # compiles, outside of what is timed
        return call


class Peer(Torchlike):
    """A library whose norm takes the sum; dropout is torch's own, as its users write it."""

    modules: ClassVar[tuple[str, ...]]
    package: ClassVar[str]

    @abstractmethod
    def norm(self, case: Case, inputs: Inputs) -> Callable[[Tensor, Tensor], Any]:
        """(branch, residual) to y, or (y, z); or a `RefusalError`."""

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        missing = [name for name in self.modules if importlib.util.find_spec(name) is None]
        if missing:
            raise RefusalError(f"{' and '.join(missing)} not installed: pip install {self.package}")
        norm, p = self.norm(case, inputs), case.dropout_p
        return lambda: norm(F.dropout(inputs.x, p) if p else inputs.x, inputs.residual)


class Liger(Peer):
    """Liger's fused add and RMSNorm; for LayerNorm its norm after torch's sum."""

    name = "liger"
    label = "Liger"
    modules, package = ("liger_kernel",), "liger-kernel"

    def norm(self, case: Case, inputs: Inputs) -> Callable[[Tensor, Tensor], Any]:
        ops = importlib.import_module("liger_kernel.ops")
        weight, bias, stream = inputs.weight, inputs.bias, case.stream

        def rms(x: Tensor, residual: Tensor) -> Any:
            y, z = ops.LigerFusedAddRMSNormFunction.apply(x, residual, weight, EPS, 0.0, "llama", False)
            return (y, z) if stream else y

        def layer(x: Tensor, residual: Tensor) -> Any:
            z = x + residual
            y = ops.LigerLayerNormFunction.apply(z, weight, bias, EPS)
            return (y, z) if stream else y

        return rms if case.norm == "rms" else layer


class Fla(Peer):
    """flash-linear-attention's norms, which add the residual."""

    name = "fla"
    label = "fla"
    modules, package = ("fla", "einops"), "fla-core einops"
    homes = ("fla.modules.norm.layernorm", "fla.modules.layernorm")  # of the newer versions, of the older ones

    def norm(self, case: Case, inputs: Inputs) -> Callable[[Tensor, Tensor], Any]:
        layer_norm = first_there(self.homes).layer_norm
        weight, bias, rms = inputs.weight, inputs.bias, case.norm == "rms"
        return lambda x, residual: layer_norm(
            x, weight, bias, residual=residual, eps=EPS, prenorm=case.stream, is_rms_norm=rms
        )


def first_there(names: tuple[str, ...]) -> Any:
    """The first module of these that there is."""
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ModuleNotFoundError(f"no module named {' or '.join(names)}")


class Quack(Peer):
    """quack's RMSNorm, which adds the residual. Its LayerNorm has neither residual nor gradient."""

    name = "quack"
    label = "quack"
    modules, package = ("quack",), "quack-kernels"

    def norm(self, case: Case, inputs: Inputs) -> Callable[[Tensor, Tensor], Any]:
        if case.norm != "rms":
            raise RefusalError("no LayerNorm with a residual or a gradient")
        rmsnorm = importlib.import_module("quack.rmsnorm").rmsnorm
        return lambda x, residual: rmsnorm(x, inputs.weight, residual=residual, eps=EPS, prenorm=case.stream)


CUDA_CONTENDERS: dict[str, Contender] = {c.name: c for c in (Addnorm(), Eager(), Autotuned(), Liger(), Fla(), Quack())}
