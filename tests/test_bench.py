from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from addnorm.bench import agree, cases, floor, inputs, run
from addnorm.bench.cases import BACKWARD, INFERENCE, TRAINING, Case
from addnorm.bench.contenders import CONTENDERS, Addnorm, Contender, Eager, Entry, RefusalError
from addnorm.bench.results import Results

SMALL = {name: CONTENDERS[name] for name in ("addnorm", "eager", "onnxruntime")}  # those that need no compiler


# -- cases and the floor ---------------------------------------------------------------------------------


def test_the_full_list_covers_every_shape_dtype_mode_and_dropout() -> None:
    plain = {(c.rows, c.d, c.dtype, c.mode, c.dropout_p) for c in cases.full() if c.norm == "layer" and not c.stream}
    for shape in cases.SHAPES:
        for dtype in ("fp32", "bf16"):
            for mode in (INFERENCE, TRAINING):
                assert {(*shape, dtype, mode, 0.0), (*shape, dtype, mode, 0.1)} <= plain
    assert {c.norm for c in cases.full()} == {"layer", "rms"}
    assert len(set(cases.full())) == len(cases.full())
    assert set(cases.quick()) <= set(cases.full())


@pytest.mark.parametrize(
    ("case", "tensors"),
    [
        (Case(rows=4, d=6), 3),
        (Case(rows=4, d=6, stream=True), 4),
        (Case(rows=4, d=6, mode=BACKWARD), 3),
        (Case(rows=4, d=6, mode=TRAINING), 7),
        (Case(rows=4, d=6, mode=TRAINING, dropout_p=0.1), 8),
        (Case(rows=4, d=6, mode=TRAINING, stream=True), 8),
    ],
)
def test_bytes_count_each_activation_once_per_pass(case: Case, tensors: int) -> None:
    assert case.nbytes == tensors * 4 * 6 * 4
    moved = sum(t.nbytes for reads, writes in floor.buffers(case) for t in (*reads, *writes))
    assert moved == case.nbytes
    for move in floor.candidates(case).values():
        move()


def test_the_backward_reads_what_the_forward_kept() -> None:
    (_, kept), (read, _) = floor.buffers(Case(rows=4, d=6, mode=TRAINING))
    assert read[0] is kept[-1]


def test_floor_of_an_odd_number_of_bytes() -> None:
    (reads, _), *_ = floor.buffers(Case(rows=3, d=5, dtype="bf16"))
    assert reads[0].nbytes == 32


def test_floor_uses_native_loops_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Extension:
        @staticmethod
        def stream_floor(reads: list, writes: list, non_temporal: bool) -> None:
            seen.append((len(reads), len(writes), non_temporal))

    monkeypatch.setattr(floor, "EXTENSION", Extension)
    found = floor.candidates(Case(rows=4, d=6, stream=True))
    assert list(found) == ["floor:torch", "floor:regular", "floor:non-temporal"]
    for move in found.values():
        move()
    assert seen == [(2, 2, False), (2, 2, True)]


# -- agreement -------------------------------------------------------------------------------------------

AGREEING = [
    Case(rows=5, d=96, dtype=dtype, mode=mode, norm=norm, stream=stream, dropout_p=p)
    for dtype in ("fp32", "bf16")
    for mode in (INFERENCE, TRAINING)
    for norm, stream in (("layer", False), ("layer", True), ("rms", True))
    for p in (0.0, 0.3)
] + [Case(rows=5, d=96, mode=BACKWARD), Case(rows=5, d=96, mode=BACKWARD, dropout_p=0.2), Case(rows=5, d=96, out=True)]


def disagreements(case: Case, *contenders: Contender) -> dict[str, str]:
    with torch.random.fork_rng(), torch.set_grad_enabled(case.trains):
        tensors = inputs.make(case)
        entries, reasons = run.prepared(case, tensors, {c.name: c for c in contenders})
        assert not reasons, reasons
        broken, wrong = agree.objections(case, tensors, entries)
        assert not broken, broken
        return wrong


@pytest.mark.parametrize("case", AGREEING, ids=str)
def test_addnorm_and_torch_agree(case: Case) -> None:
    assert disagreements(case, Addnorm(), Eager()) == {}


def test_a_large_case_is_compared_in_rows_from_first_to_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agree, "COMPARED", 1000)
    case = Case(rows=101, d=96, mode=TRAINING, dropout_p=0.2)
    assert agree.compared_rows(case).tolist() == [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]
    tensors = inputs.make(case)
    before = [grad.clone() for grad in tensors.incoming]
    with torch.random.fork_rng():
        entries, _ = run.prepared(case, tensors, {"addnorm": Addnorm(), "eager": Eager()})
        assert agree.objections(case, tensors, entries) == ({}, {})
    assert all(torch.equal(a, b) for a, b in zip(before, tensors.incoming, strict=True))


class Broken(Eager):
    """torch eager with its results spoilt."""

    name = "broken"

    def __init__(self, spoil: Callable[[list], object]) -> None:
        self.spoil = spoil

    def prepare(self, case: Case, inputs: inputs.Inputs) -> Entry:
        entry = super().prepare(case, inputs)

        def read(results: Any) -> tuple:
            values = [value.clone() for value in entry.read(results)]
            self.spoil(values)
            return tuple(values)

        return Entry(entry.call, read)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r: r[0][3].mul_(1.001), "y is off by"),
        (lambda r: r[0][1, 7].fill_(torch.nan), "y is off by inf"),
        (lambda r: r[1].mul_(1.01), "dx is off by"),
        (lambda r: r[3][5].add_(0.1), "dweight is off by"),
        (lambda r: r.pop(), "gives 4 results instead of 5"),
        (lambda r: r.__setitem__(2, r[2].double()), "dresidual is torch.float64"),
    ],
)
def test_a_wrong_result_is_seen(spoil: Callable[[list], object], reason: str) -> None:
    found = disagreements(Case(rows=5, d=96, mode=TRAINING), Addnorm(), Eager(), Broken(spoil))
    assert list(found) == ["broken"]
    assert reason in found["broken"]


class Dropping(Eager):
    """torch eager with a dropout of its own."""

    name = "dropping"

    def __init__(self, drop: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
        self.drop = drop

    def forward(self, case: Case, inputs: inputs.Inputs) -> Callable[[], Any]:
        i = inputs
        return lambda: torch.nn.functional.layer_norm(
            self.drop(i.x, case.dropout_p) + i.residual, (case.d,), i.weight, i.bias
        )


@pytest.mark.parametrize("mode", [INFERENCE, TRAINING])
@pytest.mark.parametrize(
    "drop",
    [
        lambda x, p: x,  # none
        lambda x, p: torch.nn.functional.dropout(x, p) * (1 - p),  # not scaled
        lambda x, p: torch.nn.functional.dropout(x, 2 * p) * (1 - 2 * p) / (1 - p),  # at another rate
    ],
    ids=["none", "unscaled", "rate"],
)
def test_a_wrong_dropout_is_seen(mode: str, drop: Callable) -> None:
    case = Case(rows=20, d=384, mode=mode, dropout_p=0.2)
    assert list(disagreements(case, Addnorm(), Eager(), Dropping(drop))) == ["dropping"]


# -- the run ---------------------------------------------------------------------------------------------


def test_end_to_end() -> None:
    tiny = [Case(rows=3, d=64), Case(rows=3, d=64, mode=TRAINING, dropout_p=0.1)]
    seen = []
    state = torch.get_rng_state()
    found = run.run(tiny, lambda *step: seen.append(step), rounds=2, contenders=SMALL)
    assert torch.equal(state, torch.get_rng_state())
    assert seen == [(str(tiny[0]), 0, 2), (str(tiny[1]), 1, 2)]
    plain, training = found.measurements
    assert plain.case == tiny[0]
    assert plain.ratio("eager") == plain.seconds["eager"] / plain.seconds["addnorm"]
    assert plain.to_floor == plain.seconds["addnorm"] / plain.seconds["floor"]
    assert plain.floor in floor.moves()
    assert training.reasons == {"onnxruntime": "inference only"}
    assert training.ratio("onnxruntime") is None
    assert Results.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_onnx_runtime_agrees() -> None:
    pytest.importorskip("onnxruntime")
    for norm in ("layer", "rms"):
        case = Case(rows=5, d=96, norm=norm, stream=True)
        assert disagreements(case, Addnorm(), Eager(), CONTENDERS["onnxruntime"]) == {}


def test_no_ratio_where_outputs_disagree() -> None:
    contenders = {"addnorm": Addnorm(), "eager": Eager(), "broken": Broken(lambda r: r[0].add_(1))}
    measured = run.measure(Case(rows=3, d=64), contenders, rounds=1)
    assert measured.ratio("eager") is not None
    assert measured.seconds["broken"] > 0
    assert measured.ratio("broken") is None
    assert measured.bandwidth("broken") is None
    assert "y is off by 1" in measured.reasons["broken"]


def test_no_ratio_at_all_where_addnorm_is_wrong() -> None:
    wrong = Broken(lambda r: r[0].add_(1))
    measured = run.measure(Case(rows=3, d=64), {"addnorm": wrong, "eager": Eager()}, rounds=1)
    assert (measured.ratio("eager"), measured.to_floor, measured.bandwidth()) == (None, None, None)


def test_a_contender_that_breaks_is_left_out_with_its_reason() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nat all")

    class Early(Eager):
        def forward(self, case: Case, inputs: inputs.Inputs) -> Callable[[], Any]:
            return fail()  # pyright: ignore[reportReturnType]

    class Late(Eager):
        def forward(self, case: Case, inputs: inputs.Inputs) -> Callable[[], Any]:
            return fail

    for breaking in (Early(), Late()):
        measured = run.measure(Case(rows=3, d=64), {"addnorm": Addnorm(), "compile": breaking}, rounds=1)
        assert measured.reasons == {"compile": "failed: RuntimeError: no compiler"}
        assert "compile" not in measured.seconds


def test_a_compiled_backward_is_refused() -> None:
    case = Case(rows=3, d=64, mode=BACKWARD)
    with pytest.raises(RefusalError, match="frees what the forward kept"):
        CONTENDERS["compile"].prepare(case, inputs.make(case))


def test_results_of_another_format_are_refused() -> None:
    with pytest.raises(ValueError, match="not a benchmark result of format 1: format is None"):
        Results.from_dict({})
