"""Who is measured: addnorm, and what people use instead. One class each, one table."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .. import functional
from .cases import BACKWARD, EPS, INFERENCE, Case
from .inputs import Inputs
from .results import OURS

Results = tuple[Tensor, ...]


class RefusalError(Exception):
    """Why a contender does not take a case."""


@dataclass(frozen=True)
class Entry:
    """A contender ready for a case: the call that is timed, and how to read its results: y, and z if asked for,
    then the gradients of the leaves where the case trains. A backward gives the gradients alone."""

    call: Callable[[], Any]
    read: Callable[[Any], Results] = tuple


class Contender(ABC):
    """Something that computes Add & Norm."""

    name: ClassVar[str]
    label: ClassVar[str]

    @abstractmethod
    def prepare(self, case: Case, inputs: Inputs) -> Entry:
        """The entry for a case, or a `RefusalError`."""


class Torchlike(Contender):
    """A contender whose forward is a function of tensors that torch's autograd differentiates."""

    @abstractmethod
    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        """The forward: y, or (y, z)."""

    def prepare(self, case: Case, inputs: Inputs) -> Entry:
        forward = self.forward(case, inputs)
        if case.mode == INFERENCE:
            return Entry(forward, as_tuple)
        leaves, incoming = tuple(inputs.leaves.values()), inputs.incoming
        if case.mode == BACKWARD:
            results = as_tuple(forward())
            return Entry(lambda: torch.autograd.grad(results, leaves, incoming, retain_graph=True))

        def step() -> tuple[Any, Results]:
            results = forward()
            return results, torch.autograd.grad(results, leaves, incoming)

        return Entry(step, lambda both: (*as_tuple(both[0]), *both[1]))


class Addnorm(Torchlike):
    """The public call, as a user makes it."""

    name = OURS
    label = "addnorm"

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        call = functional.add_norm_stream if case.stream else functional.add_norm
        options: dict[str, Any] = {} if case.norm == "layer" else {"norm": case.norm}  # eps is EPS by default
        if case.dropout_p:
            options["dropout_p"] = case.dropout_p
        if inputs.out is not None:
            options["out"] = inputs.out
        return partial(call, inputs.x, inputs.residual, inputs.weight, inputs.bias, **options)


class Eager(Torchlike):
    """torch's own operations, one after the other."""

    name = "eager"
    label = "torch eager"

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return partial(composite(case), inputs.x, inputs.residual, inputs.weight, inputs.bias)


class Compile(Torchlike):
    """The same operations under torch.compile, for exactly this shape."""

    name = "compile"
    label = "torch.compile"

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        if case.mode == BACKWARD:
            raise RefusalError("a compiled backward frees what the forward kept and can not be run again by itself")
        torch._dynamo.reset()  # or the shapes before this one count against its limit of recompilations
        compiled = torch.compile(composite(case), fullgraph=True, dynamic=False)
        return partial(compiled, inputs.x, inputs.residual, inputs.weight, inputs.bias)


def composite(case: Case) -> Callable[..., Any]:
    """Add & Norm as it is written in plain torch."""
    shape, p, rms, stream = (case.d,), case.dropout_p, case.norm == "rms", case.stream

    def add_then_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        z = (F.dropout(x, p) if p else x) + residual
        y = F.rms_norm(z, shape, weight, EPS) if rms else F.layer_norm(z, shape, weight, bias, EPS)
        return (y, z) if stream else y

    return add_then_norm


class OnnxRuntime(Contender):
    """SkipLayerNormalization of ONNX Runtime, with inputs and outputs bound."""

    name = "onnxruntime"
    label = "ONNX Runtime"

    def prepare(self, case: Case, inputs: Inputs) -> Entry:
        if case.trains:
            raise RefusalError("inference only")
        if case.dropout_p:
            raise RefusalError("no dropout")
        if case.dtype != "fp32":
            raise RefusalError("fp32 only")
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise RefusalError(f"{' and '.join(missing)} not installed: pip install 'addnorm[bench]'")
        return bind(case, inputs)


def bind(case: Case, inputs: Inputs) -> Entry:
    """An ONNX Runtime session over the case's tensors; it allocates its outputs, as the others do."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(skip_norm(case), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, tensor in inputs.leaves.items():
        binding.bind_cpu_input(name, tensor.numpy())
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")

    def read(_: Any) -> Results:
        return tuple(torch.from_numpy(array) for array in binding.copy_outputs_to_cpu())

    return Entry(partial(session.run_with_iobinding, binding), read)


def skip_norm(case: Case) -> bytes:
    """An ONNX model of one node."""
    from onnx import TensorProto, helper

    kind = {"layer": "SkipLayerNormalization", "rms": "SkipSimplifiedLayerNormalization"}
    names = ["x", "residual", "weight", *(["bias"] if case.norm == "layer" else [])]
    outputs = ["y", "", "", "z"] if case.stream else ["y"]
    node = helper.make_node(kind[case.norm], names, outputs, domain="com.microsoft", epsilon=EPS)
    matrix, vector = [case.rows, case.d], [case.d]
    shapes = {name: matrix if name in ("x", "residual") else vector for name in names}
    graph = helper.make_graph(
        [node],
        "add_norm",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, matrix) for name in outputs if name],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def as_tuple(results: Any) -> Results:
    return results if isinstance(results, tuple) else (results,)


CONTENDERS: dict[str, Contender] = {c.name: c for c in (Addnorm(), Eager(), Compile(), OnnxRuntime())}
