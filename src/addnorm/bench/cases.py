"""What is measured: shapes, dtypes, modes and variants of one Add & Norm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..norms.table import NORMS

INFERENCE, TRAINING, BACKWARD = "inference", "training", "backward"
MODES = (INFERENCE, TRAINING, BACKWARD)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
EPS = 1e-5

CACHE_SHAPES = ((1, 768), (32, 768), (128, 384), (512, 768))
SHAPES = (*CACHE_SHAPES, (4096, 768), (4096, 1024), (2048, 8192), (8192, 4096))
VARIANT_SHAPES = ((1, 768), (512, 768), (4096, 1024), (2048, 8192))  # for RMSNorm and for the stream
LARGE_SHAPES = SHAPES[-2:]  # far beyond the caches, where allocating the output is the largest cost


@dataclass(frozen=True, kw_only=True)
class Case:
    """One Add & Norm as it is measured.

    ``inference`` is the forward without gradients, ``training`` forward and backward, ``backward`` the backward
    alone. ``stream`` asks for the sum z as well; ``out`` puts addnorm's y into an existing tensor, where the peers
    go on as their users write them.
    """

    rows: int
    d: int
    dtype: str = "fp32"
    mode: str = INFERENCE
    dropout_p: float = 0.0
    norm: str = "layer"
    stream: bool = False
    out: bool = False
    device: str = "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def is_known(self) -> bool:
        """Whether there is such a case: of a stored one, nothing is certain."""
        words = self.dtype in DTYPES and self.mode in MODES and self.norm in NORMS and self.device in ("cpu", "cuda")
        return words and isinstance(self.rows * self.d, int) and min(self.rows, self.d) > 0 and 0 <= self.dropout_p < 1

    @property
    def trains(self) -> bool:
        return self.mode != INFERENCE

    @property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """Activations read and written, ``(reads, writes)`` of each pass over memory; what any fused kernel must move.

        The forward reads x and the residual and writes y, and z if asked for or if the backward wants it. The
        backward reads z, dy (and dz) and writes one gradient, as x and the residual have the same without dropout.
        """
        forward = (2, 1 + (self.stream or self.trains))
        backward = (2 + self.stream, 1 + (self.dropout_p > 0))
        return {INFERENCE: (forward,), TRAINING: (forward, backward), BACKWARD: (backward,)}[self.mode]

    @property
    def nbytes(self) -> int:
        """Bytes of all phases."""
        tensors = sum(reads + writes for reads, writes in self.phases)
        return tensors * self.rows * self.d * self.torch_dtype.itemsize

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.d}"

    @property
    def group(self) -> str:
        """What is done, shape and dtype aside."""
        parts = [{INFERENCE: "forward", TRAINING: "forward + backward", BACKWARD: "backward"}[self.mode]]
        if self.norm != "layer":
            parts.append({"rms": "RMSNorm"}.get(self.norm, self.norm))
        if self.stream:
            parts.append("with the sum")
        if self.dropout_p:
            parts.append(f"dropout {self.dropout_p:g}")
        if self.out:
            parts.append("into an existing tensor")
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"{self.group}, {self.shape} {self.dtype}"


def full() -> tuple[Case, ...]:
    """Every shape, dtype, mode, with and without dropout; RMSNorm and the stream at some shapes."""
    return tuple(ordered(full_cases()))


def full_cases() -> Iterator[Case]:
    for dtype in ("fp32", "bf16"):
        for rows, d in SHAPES:
            for mode in (INFERENCE, TRAINING):
                for dropout_p in (0.0, 0.1):
                    yield Case(rows=rows, d=d, dtype=dtype, mode=mode, dropout_p=dropout_p)
            if dtype == "fp32":
                yield Case(rows=rows, d=d, mode=BACKWARD)
        for rows, d in VARIANT_SHAPES:
            for mode in (INFERENCE, TRAINING):
                yield Case(rows=rows, d=d, dtype=dtype, mode=mode, norm="rms")
                yield Case(rows=rows, d=d, dtype=dtype, mode=mode, stream=True)
        for rows, d in LARGE_SHAPES:
            yield Case(rows=rows, d=d, dtype=dtype, out=True)


def quick() -> tuple[Case, ...]:
    """A look in well under a minute: two shapes, one per level of memory."""
    return tuple(
        ordered(
            Case(rows=rows, d=d, dtype=dtype, mode=mode, dropout_p=dropout_p)
            for rows, d in ((32, 768), (4096, 768))
            for dtype, mode, dropout_p in (
                ("fp32", INFERENCE, 0.0),
                ("bf16", INFERENCE, 0.0),
                ("fp32", INFERENCE, 0.1),
                ("fp32", TRAINING, 0.0),
            )
        )
    )


def ordered(cases: Iterator[Case]) -> list[Case]:
    """By group, then dtype, smallest first."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    names = list(DTYPES)
    by_dtype = (sorted(group, key=lambda c: (names.index(c.dtype), c.rows * c.d)) for group in groups.values())
    return [case for group in by_dtype for case in group]
