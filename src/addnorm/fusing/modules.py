"""Mode "modules": nothing is captured; modules whose own forward holds a norm run fused, each by itself."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_file

from .base import HOOKS, FusedCall, hook_dicts, is_traced
from .callers import Pass
from .judge import ALONE, Verdict, judged
from .local import KINDS, Local, Part
from .measured import TORCH_FASTER
from .place import PLACE, PLACES, InPlace, put, take
from .report import Outcome
from .trial import UNJUDGED


class ModulesCall(FusedCall):
    """The model's own call, with some of its modules fused; see `addnorm.fuse` for what it promises."""

    mode = "modules"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        found = {path: LocalCall.of(module, path, self) for path, module in model.named_modules()}
        self._calls = {path: call for path, call in found.items() if call is not None}
        self._own = self._calls.pop("", None)  # the model's own, where it is of a kind itself
        self._at_rest: Any = None
        self._sample: dict[str, Any] = {}  # the parameters of a norm that rests
        self.now = Pass()

    def install(self) -> None:
        super().install()
        if self._own is not None:
            self._own.code = self._own.methods()  # with the forward that is there now
        for call in self._calls.values():
            put(call.module, call)

    def remove(self) -> None:
        super().remove()
        for call in self._calls.values():
            call.rests = False
            take(call.module, call)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if self.circumstances() != self._at_rest:
            self.wake()
        if not self.report.complete:
            self.now.start()
        result = (self.model._call_impl if self._own is None else self._own)(*args, **kwargs)
        if not self.report.complete:
            self.settle()
        if self._at_rest is None:
            self.rest()
        return result

    def settle(self) -> None:
        """After the first pass, or another thread's that began before its end."""
        self.now.start()
        with self.lock:
            if not self.report.complete:
                self.complete()

    def rest(self) -> None:
        """Take ours from the norms that are left to torch, as things are. To ask each time is too slow: between two
        matrix products the code that asks has left the caches, and takes longer than a norm of few rows.
        """
        with PLACES:
            for call in self._calls.values():
                if call.idle and take(call.module, call):
                    call.rests = True
        self._sample = next((call.module._parameters for call in self._calls.values() if call.rests), {})
        self._at_rest = self.circumstances()

    def wake(self) -> None:
        """Put ours back, where no other has taken the place since."""
        self._at_rest = None
        with PLACES:
            for call in self._calls.values():
                if not call.rests:
                    continue
                call.idle = call.rests = False
                if call.module.__dict__.get(PLACE) is call.before:
                    put(call.module, call)

    def circumstances(self) -> tuple[Any, ...]:
        """What decides, beside its input, whether a norm alone is left to torch: of the first that rests, as what is
        looked at has mostly left the caches since the last call."""
        weight = self._sample.get("weight")
        kind = None if weight is None else (weight.dtype, weight.is_cpu, weight.requires_grad)
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), kind

    def gained(self) -> int:
        return self.report.fused + self.report.plain

    def why_unseen(self, name: str) -> str:
        return "not called as a module, or its class is of no kind that this mode knows"


class LocalCall(InPlace):
    """What runs in place of one module's call."""

    def __init__(self, path: str, readings: list[Local], owner: ModulesCall) -> None:
        self.path, self.owner = path, owner
        self.module = readings[0].module
        self.verdicts: dict[Hashable, Verdict] = {}  # of real numbers, for each mix of types
        self.idle = False  # whether torch was faster when it was last called
        self.rests = False  # whether it is taken out for that
        self._readings = readings
        self.look_over()
        self.code = self.methods()

    @classmethod
    def of(cls, module: nn.Module, path: str, owner: ModulesCall) -> LocalCall | None:
        """For a module of a known kind that runs its own code."""
        if "forward" in module.__dict__ or (path and module.__dict__.get(PLACE) is not None):
            return None
        return next((cls(path, kind.readings(module), owner) for kind in KINDS if kind.matches(module)), None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return self.module._call_impl(*args, **kwargs)
        left = self.changed() or self._readings[0].left_to(*args, **kwargs)
        self.idle = left == TORCH_FASTER
        verdict = None if left else self.verdicts.get(self.types(*args, **kwargs))
        if not self.owner.report.complete or (verdict is None and not left):
            verdict = self.watch(left, verdict, *args, **kwargs)
        if verdict is None or verdict.reading is None:
            return self.module._call_impl(*args, **kwargs)
        return verdict.reading.forward(*args, **kwargs)

    def types(self, *args: Any, **kwargs: Any) -> Hashable:
        """What the types of the results follow from: those of the arguments and parameters, and autocast's."""
        found = [each.dtype for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        found += [each.dtype for own in self._parameters for each in own.values() if each is not None]
        return (*found, *autocast_types()) if torch._C._is_any_autocast_enabled() else tuple(found)

    def look_over(self) -> None:
        """Note the submodules that the fused forward does not call as modules, as they are now, and their hooks."""
        bypassed = self.bypassed()
        named = zip(self._readings[0].bypassed, bypassed, strict=True)
        self._hooked = {"it": self.module, **{name: part for name, part in named if part is not None}}
        self._hooks = hook_dicts(self._hooked.values())
        self._parameters = [part._parameters for part in self._hooked.values() if part._parameters]
        self._bypassed = bypassed  # last, as another thread asks by it

    def bypassed(self) -> list[nn.Module | None]:
        parts = self.module._modules
        return [parts.get(name) for name in self._readings[0].bypassed]

    def methods(self) -> list[Any]:
        """The module's methods that the fused forward stands for."""
        return [getattr(self.module, name, None) for name in self._readings[0].methods]

    def changed(self) -> str:
        """What others did to the module that keeps its own code running."""
        if self.methods() != self.code:
            return "its code has been replaced since the model was fused"
        if self.bypassed() != self._bypassed:
            self.look_over()
        return self.hook() if any(self._hooks) else ""

    def hook(self) -> str:
        """Which hook keeps the module's own code running."""
        where = {name: vars(module) for name, module in self._hooked.items()}
        where["every module"] = {name: getattr(module_file, f"_global{name}") for name in HOOKS}
        found = ((part, words) for part, held in where.items() for name, words in HOOKS.items() if held[name])
        part, words = next(found, ("it", "a hook"))
        captured = "" if "backward" in words else ", or fuse in mode 'eager', which captures it"
        return (
            f"{part} has {words}, which sees what the module's own code computes: remove it (registering it gave a "
            f"handle with remove()){captured}"
        )

    def watch(self, left: str, verdict: Verdict | None, *args: Any, **kwargs: Any) -> Verdict:
        """Try the fused forward, where that has not been done, and report this call."""
        if left:
            verdict = Verdict(reason=left)
        elif verdict is None:
            verdict = judged(self._readings, args, kwargs)
            if verdict.reason is not None:
                self.verdicts[self.types(*args, **kwargs)] = verdict
        call = 0 if self.owner.report.complete else self.owner.now.count(self.path)
        for part in (verdict.reading or self._readings[0]).parts():
            outcome = self.outcome(part, call, verdict)
            told = (outcome.norm, outcome.call) in self.owner.report.outcomes
            if not (left and told):  # the block that holds a norm has said more of why it is left
                self.owner.report.record(outcome)
        return verdict

    def outcome(self, part: Part, call: int, verdict: Verdict) -> Outcome:
        """What became of one norm of the module."""
        norm = ".".join(name for name in (self.path, part.norm) if name)
        if verdict.reading is None:
            return Outcome(norm, call, part.kind, fused=False, reason=verdict.reason or UNJUDGED)
        if not part.folded:
            return Outcome(norm, call, part.kind, False, plain=True, reason=ALONE, backend=verdict.backend)
        return Outcome(norm, call, part.kind, True, part.folded, part.stream, backend=verdict.backend)


def autocast_types() -> list[torch.dtype | None]:
    """The types in which autocast computes, where it is on."""
    return [torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in ("cpu", "cuda")]
