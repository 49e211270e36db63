"""The GPU benchmark without a GPU: everything but the device's clock, on CPU tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm import cli
from addnorm.bench import DEVICES, cuda_cases, devices, floor, inputs, run
from addnorm.bench.cases import BACKWARD, INFERENCE, TRAINING, Case
from addnorm.bench.contenders import Addnorm, Eager, RefusalError
from addnorm.bench.cuda_contenders import CUDA_CONTENDERS, Autotuned, Peer, first_there
from addnorm.bench.results import COPY, FLOOR, Results
from addnorm.bench.targets import TARGETS
from addnorm.cuda_clock import MOST_CALLS, TRIAL, CudaClock
from addnorm.report import cuda

from .support.pretended_gpu import SMALL, Pretended, PretendedClock, Uncapturable

ROOT = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    device = Pretended()
    monkeypatch.setitem(DEVICES, "cuda", device)
    cases = (Case(rows=3, d=64, stream=True), Case(rows=3, d=64, mode=TRAINING))
    monkeypatch.setattr("addnorm.bench.cuda_full", lambda: cases)
    monkeypatch.setattr(run, "run", partial(run.run, rounds=1))
    return device


# -- what is measured ------------------------------------------------------------------------------------


def test_the_full_list_has_every_width_and_number_of_rows() -> None:
    found = cuda_cases.cuda_full()
    assert len(set(found)) == len(found)
    assert {case.device for case in found} == {"cuda"}
    for d in (256, 768, 1024, 4096, 5120, 8192, 16384, 32768, 65536):
        here = [case for case in found if case.d == d]
        assert {1, 8, 64, 2048} < {case.rows for case in here}
        large = [case for case in here if case.rows > 2048]
        assert all(case.rows * d * case.torch_dtype.itemsize >= 4 * 60e6 for case in large)
        assert {(case.norm, case.mode) for case in large} >= {
            ("layer", INFERENCE), ("rms", INFERENCE), ("layer", BACKWARD), ("rms", BACKWARD), ("layer", TRAINING)
        }  # fmt: skip
    assert set(cuda_cases.cuda_quick()) <= set(found)
    assert {case.dtype for case in found} == {"bf16", "fp16", "fp32"}


def test_every_target_has_a_case() -> None:
    for target in TARGETS:
        assert any(target.holds(case) for case in cuda_cases.cuda_full()), target.regime


@pytest.mark.parametrize("case", [Case(rows=4, d=6), Case(rows=4, d=6, stream=True), Case(rows=5, d=3, mode=TRAINING)])
def test_the_copy_moves_the_bytes_of_the_case(case: Case) -> None:
    copied = floor.device_copy(case)()
    assert isinstance(copied, torch.Tensor)
    assert case.nbytes <= 2 * copied.nbytes < case.nbytes + 8
    assert torch.equal(floor.same_shape_copy(case)(), torch.ones(case.rows, case.d))  # pyright: ignore[reportArgumentType]


# -- the contenders --------------------------------------------------------------------------------------


def test_a_peer_that_is_not_installed_says_so() -> None:
    case = Case(rows=3, d=64, norm="rms")
    for name in ("liger", "fla", "quack"):
        with pytest.raises(RefusalError, match="not installed: pip install"):
            CUDA_CONTENDERS[name].prepare(case, inputs.make(case))


def test_a_peer_that_moved_is_found_in_its_older_home() -> None:
    assert first_there(("torch.no_such_module", "torch.nn")) is torch.nn
    with pytest.raises(ModuleNotFoundError, match=r"torch\.none or torch\.neither"):
        first_there(("torch.none", "torch.neither"))


@pytest.mark.parametrize("mode", [INFERENCE, TRAINING, BACKWARD])
def test_a_peer_is_given_the_sum_and_torchs_dropout(mode: str) -> None:
    class Known(Peer):
        name, label, package, modules = "known", "known", "known", ("torch",)

        def norm(self, case: Case, inputs: inputs.Inputs) -> Callable[..., Any]:
            assert inputs.bias is not None
            eager = torch.nn.functional.layer_norm
            return lambda x, residual: eager(x + residual, (case.d,), inputs.weight, inputs.bias)

    case = Case(rows=20, d=384, mode=mode, dropout_p=0.2)
    contenders = {"addnorm": Addnorm(), "eager": Eager(), "known": Known()}
    assert run.measure(case, contenders, rounds=1, device=Pretended()).reasons == {}


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_a_compiled_backward_can_be_timed_by_itself() -> None:
    case = Case(rows=3, d=64, mode=BACKWARD)
    measured = run.measure(case, {**SMALL, "compile": Autotuned()}, rounds=1, device=Pretended())
    assert measured.reasons == {}
    assert measured.seconds["compile"] > 0


# -- the run ---------------------------------------------------------------------------------------------


def test_seconds_are_the_devices_and_the_hosts_apart() -> None:
    clock = PretendedClock()
    measured = run.measure(Case(rows=3, d=64, stream=True), SMALL, rounds=1, device=Pretended(clock))
    assert set(measured.seconds) == {"addnorm", "eager", COPY, FLOOR}
    for seconds in measured.seconds.values():
        assert seconds == pytest.approx(1e-6, rel=0.02)  # what a replayed call takes here, however slow the CPU is
    assert set(measured.host) == {"addnorm", "eager"}
    assert measured.host["addnorm"] > 2e-7
    assert measured.floor == COPY
    assert clock.captured == [TRIAL, MOST_CALLS] * 4
    assert measured.clocks["addnorm"] == f"graph of {MOST_CALLS}"


def test_the_host_does_not_decide_how_many_calls_a_graph_has() -> None:
    class Recorded(PretendedClock):
        """Of a call a replay has the kernels alone."""

        def graph(self, call: Callable[[], object], count: int) -> Callable[[], object]:
            return super().graph(lambda: None, count)

    clock = Recorded()

    def call() -> None:
        clock.time += 1e-3

    seconds, clocks = clock.times({"small": call}, rounds=1, budget=1)
    assert clocks["small"] == f"graph of {MOST_CALLS}"
    assert seconds["small"] == pytest.approx(1e-6, rel=0.02)


def test_the_devices_time_is_as_fine_after_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Event:
        """As CUDA's: an interval is float32 milliseconds."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now

        def synchronize(self) -> None: ...

        def elapsed_time(self, other: Event) -> float:
            return torch.tensor(1e3 * (other.at - self.at), dtype=torch.float32).item()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = CudaClock()
    clock.now()
    for _ in range(3600):
        now += 1.0
        clock.now()
    before = clock.now()
    now += 1.1e-3  # no whole number of milliseconds, which float32 would have even then
    assert clock.now() - before == pytest.approx(1.1e-3, rel=1e-6)


def test_what_can_not_be_captured_is_timed_by_events() -> None:
    measured = run.measure(Case(rows=3, d=64), SMALL, rounds=1, device=Pretended(Uncapturable()))
    assert measured.clocks["eager"] == "events, no graph: operation not permitted when stream is capturing"
    assert "operation not permitted" in cuda.clocks([measured])[0]


def test_what_can_not_be_captured_need_not_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Uncapturable, "error", RuntimeError())
    _, clocks = Uncapturable().times({"call": lambda: None}, rounds=1, budget=1)
    assert clocks == {"call": "events, no graph: no message"}


@pytest.mark.usefixtures("pretended")
def test_one_command_gives_one_object(capsys: Capture) -> None:
    assert cli.main(["bench", "--device", "cuda", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["checks"] == ["some calls agree"]
    assert {"gpu", "cuda", "triton", "peers"} <= set(data["machine"])
    first = data["measurements"][0]
    assert {"seconds", "host", "clocks", "reasons", "ratios", "bytes", "to_floor"} <= set(first)
    assert Results.from_dict(data).to_dict() == data


def test_nothing_is_timed_where_a_result_is_wrong(pretended: Pretended, capsys: Capture) -> None:
    pretended.wrong = "layer 37x64 bf16: y is off by 1"
    assert cli.main(["bench", "--device", "cuda", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing was timed, as a result is wrong: layer 37x64 bf16: y is off by 1" in err
    assert isinstance(pretended.clock, PretendedClock)
    assert pretended.clock.captured == []


def test_without_a_gpu_the_command_says_what_is_missing(capsys: Capture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert cli.main(["bench", "--device", "cuda"]) == 1
    assert "--device cuda: torch" in capsys.readouterr().err


def test_a_card_that_the_kernels_do_not_run_on_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(devices, "obstacle", lambda kind, index: f"{kind}:{index} has compute capability (7, 5)")
    assert cli.main(["bench", "--device", "cuda", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "--device cuda: the kernels do not run there: cuda:0 has compute capability (7, 5)" in err


def test_it_runs_from_the_source_tree_with_torch_alone() -> None:
    """No installed package, no C++ extension, none of the packages of a report."""
    code = f"""
import sys
sys.path = [{str(ROOT / "src")!r}, *(p for p in sys.path if "addnorm" not in p), {str(ROOT)!r}]
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("rich", "plotly", "jinja2") or "_cpu_torch" in name:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in ("rich", "plotly", "jinja2") else find(name, *a)
from importlib import metadata
known = metadata.version
def version(name):
    if name == "addnorm":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
from addnorm import bench, cli
from addnorm.bench import DEVICES
from addnorm.bench.cases import Case
from tests.support.pretended_gpu import Pretended
DEVICES["cuda"] = Pretended()
bench.cuda_full = lambda: (Case(rows=3, d=64),)
raise SystemExit(cli.main(["bench", "--device", "cuda"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "addnorm bench, GPU" in done.stdout
    assert "addnorm: 0." in done.stdout


def test_the_card_is_checked_by_the_kernels_themselves() -> None:
    """Under Triton's interpreter: right kernels pass, a wrong scale, mask or sum is found."""
    code = """
from unittest import mock
from addnorm.backends.triton import run
from addnorm.bench import correct
print(correct.check("cpu", (9,)))
for name, value in (("keep_scale", lambda call: 1.0), ("dropout_threshold", lambda p: 1000),
                    ("POLICIES", {**run.POLICIES, "layer": run.POLICIES["rms"]})):
    with mock.patch.object(run, name, value):
        try:
            correct.check("cpu", (9,))
        except (AssertionError, IndexError, ValueError):  # the last, statistics of another shape, is refused
            continue
    raise SystemExit(f"a wrong {name} is accepted")
"""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "calls agree with float64" in done.stdout
