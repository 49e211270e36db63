"""What is measured on a GPU: widths, and rows from one to more than the caches hold.

Large means that one activation alone is `LARGE` bytes, several times any L2. Smaller cases are served from the L2, and
so is the copy that they are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator

from .cases import BACKWARD, TRAINING, Case, ordered

WIDTHS = (256, 768, 1024, 4096, 5120, 8192, 16384, 32768, 65536)
FEW_ROWS = (1, 8, 64, 2048)
LARGE = 3 << 27  # bytes of one activation: also of the widest, more than 2048 rows
DECODE = 64  # rows at most
ELEMENT = 2  # bytes of bfloat16


def large_rows(width: int) -> int:
    return LARGE // (width * ELEMENT)


def cuda_full() -> tuple[Case, ...]:
    """Every width: the forward, post- and pre-norm, at all numbers of rows; dropout, RMSNorm, the backward and a whole
    step where the data is large; float32 and float16 at some widths."""
    return tuple(ordered(cases(WIDTHS, FEW_ROWS)))


def cuda_quick() -> tuple[Case, ...]:
    """Three widths, large, and a decoding step: a few minutes, most of them torch.compile's."""
    return tuple(ordered(case for case in cases((1024, 4096, 16384), (8,)) if case.dtype == "bf16"))


def cases(widths: tuple[int, ...], few_rows: tuple[int, ...]) -> Iterator[Case]:
    for d in widths:
        rows = large_rows(d)
        for count in (*few_rows, rows):
            for stream in (False, True):
                yield bf16(count, d, stream=stream)
        for norm in ("layer", "rms"):
            yield bf16(rows, d, mode=BACKWARD, norm=norm)
        if 2048 in few_rows:
            yield bf16(2048, d, mode=BACKWARD)
        yield bf16(rows, d, stream=True, dropout_p=0.1)
        yield bf16(rows, d, stream=True, norm="rms")
        yield bf16(rows, d, mode=TRAINING, dropout_p=0.1)
        if d in (1024, 8192):
            yield Case(rows=rows // 2, d=d, dtype="fp32", stream=True, device="cuda")
            yield Case(rows=rows, d=d, dtype="fp16", stream=True, device="cuda")
            yield Case(rows=rows // 2, d=d, dtype="fp32", mode=BACKWARD, device="cuda")


def bf16(rows: int, d: int, **options: object) -> Case:
    return Case(rows=rows, d=d, dtype="bf16", device="cuda", **options)  # pyright: ignore[reportArgumentType]
