"""The GPU benchmark's report, from numbers that are made up; see test_bench_cuda.py for how they are taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from addnorm import cli
from addnorm.bench.cases import BACKWARD, INFERENCE, Case
from addnorm.bench.results import COPY, FLOOR, Measurement, Results
from addnorm.bench.targets import verdicts
from addnorm.machine import describe
from addnorm.report import cuda, page, plain

Capture = pytest.CaptureFixture[str]


def synthetic() -> Results:
    """Numbers made up for the report alone; nothing was measured."""
    measurements = []
    for d, percent in ((1024, 99.0), (4096, 98.5), (16384, 97.0)):
        for mode in (INFERENCE, BACKWARD):
            case = Case(rows=(1 << 27) // d, d=d, dtype="bf16", stream=mode == INFERENCE, mode=mode, device="cuda")
            seconds = {"addnorm": 100e-6, FLOOR: percent * 1e-6, COPY: 30e-6, "eager": 300e-6, "liger": 150e-6}
            measurements.append(
                Measurement(case, "triton", seconds, {"quack": "no LayerNorm"}, COPY, {"addnorm": 9e-6}, {})
            )
    decode = Case(rows=8, d=4096, dtype="bf16", device="cuda")
    measurements.append(Measurement(decode, "triton", {"addnorm": 2.4e-6, FLOOR: 2e-6, COPY: 2e-6}, {}, COPY))
    machine = replace(describe(), gpu="made up", cuda="13.0", triton="3.6.0", peers={"liger-kernel": "0.8.5"})
    return Results(machine, tuple(measurements), 12.0, ("46 calls agree",))


def test_targets_are_held_against_their_worst_case() -> None:
    found = {verdict.target.regime: verdict for verdict in verdicts(synthetic())}
    forward = found["forward, pre-norm, N 1k-16k"]
    assert (forward.worst, forward.met, forward.cases) == (pytest.approx(97), False, 3)
    assert forward.case is not None
    assert forward.case.d == 16384
    decode = found["decode, <= 64 rows, N <= 8k, in a CUDA graph"]
    assert (decode.worst, decode.met) == (pytest.approx(1.2), True)
    host = found["host, a forward without dropout"]
    assert (host.worst, host.met, host.cases) == (pytest.approx(9), False, 3)
    assert found["forward, N 32k-128k"].met is None
    assert found["backward, LayerNorm, N 1k-8k"].met is (98.5 >= 93)


def test_a_disagreeing_kernel_meets_no_target() -> None:
    results = synthetic()
    wrong = tuple(replace(m, reasons={"addnorm": "y is off by 1"}) for m in results.measurements)
    found = verdicts(replace(results, measurements=wrong))
    assert [verdict.met for verdict in found] == [None if before.met is None else False for before in verdicts(results)]


def test_one_case_that_addnorm_fails_in_misses_the_target_and_is_named() -> None:
    results = synthetic()
    *rest, decode = results.measurements
    failed = replace(decode, seconds={FLOOR: 2e-6, COPY: 2e-6}, reasons={"addnorm": "failed: no memory"})
    held = replace(decode, case=replace(decode.case, rows=1))
    both = replace(results, measurements=(*rest, failed, held))
    (verdict,) = (v for v in verdicts(both) if v.target.regime.startswith("decode"))
    assert (verdict.met, verdict.worst, verdict.case, verdict.cases) == (False, None, failed.case, 2)
    document = cuda.document(both)
    assert any(line == f"No time: addnorm, {failed.case}: failed: no memory" for line in document.summary)
    assert "2 of 5 targets met" in "".join(document.summary)
    assert [row[1:] for row in document.sections[0].tables[0].rows if row[0].startswith("decode")] == [
        ("no", "<= 1.3x a same-shape copy", "–", "2", "8x4096")
    ]


def test_bandwidth_is_given_of_what_moves_the_bytes_of_the_case() -> None:
    measurement = synthetic().measurements[0]
    assert COPY in measurement.seconds
    assert set(measurement.to_dict()["gigabytes_per_second"]) == {"addnorm", "eager", "liger", FLOOR}


def test_the_document_has_targets_and_a_roofline() -> None:
    document = cuda.document(synthetic())
    assert document.facts["GPU"] == "made up"
    assert "46 calls agree." in document.summary
    assert document.sections[0].title == "Targets"
    bandwidth, percent = document.sections[1].figures
    assert bandwidth.x == (1024, 4096, 16384)  # pyright: ignore[reportAttributeAccessIssue]
    curves = {curve.name: curve.frames[0] for curve in percent.curves}  # pyright: ignore[reportAttributeAccessIssue]
    assert curves["addnorm"] == pytest.approx((99, 98.5, 97))
    assert curves["device copy"] == (100, 100, 100)
    assert "Percent of a device copy" in page.render(document)
    text = plain.text(document)
    assert "16384" in text
    assert "no LayerNorm" in text


def test_a_saved_gpu_result_is_shown_anywhere(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "h200.json"
    path.write_text(json.dumps(synthetic().to_dict()))
    assert cli.main(["bench", "--load", str(path), "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "| forward, pre-norm, N 1k-16k | no | >= 98 % | 97 % |" in out
    assert "| host, a forward without dropout | no | <= 8 µs | 9 µs |" in out
    assert "made up; addnorm" in out
    assert cli.main(["bench", "--load", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert "Useful bandwidth" in (tmp_path / "page.html").read_text()
