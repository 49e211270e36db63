"""`addnorm fuse`: what it does to a local model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm import cli
from addnorm.demo import pair

LAYERS = 2
WORDS = ("[PAD]", "[UNK]", "the", "cat", "sat", "on", "a", "mat", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small BERT with random weights, as transformers saves it, and a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=len(WORDS),
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_text("the cat sat on a mat\n\nthe dog sat\n")
    return tmp_path


@pytest.mark.parametrize("options", [[], ["--train"]])
def test_a_local_model(options: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "page.html"
    arguments = ["fuse", str(folder), "--text", str(folder / "text"), "--json", "--html", str(page), *options]
    assert cli.main(arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["report"]["fused"], found["report"]["skipped"]) == (2 * LAYERS + 1, 0)
    assert found["holds"]
    assert found["training"] is bool(options)
    assert 0 < found["output_error"]["after"] < 1e-5
    assert 0 < found["gradient_error"]["after"] < 1e-5
    assert found["speedup"] == found["seconds"]["before"] / found["seconds"]["after"]
    assert "encoder.layer.1.output.LayerNorm" in page.read_text()


def test_an_error_of_the_librarys_own_is_not_laid_to_the_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("inside")

    monkeypatch.setattr(pair, "fuse", broken)
    with pytest.raises(ValueError, match="inside"):
        cli.main(["fuse", str(folder), "--json"])


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fuse", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "5 Add & Norm calls fused" in text
    assert "embeddings.LayerNorm" in text
    assert "inference" in text


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("model.safetensors", b"not safetensors", "can not be loaded"),
        ("config.json", b"{", "can not be loaded"),
        ("config.json", b'{"model_type": "none such"}', "can not be loaded"),
        ("tokenizer.json", b"{", "tokenizer.json can not be read"),
        ("text", b"\n \n", "the text is empty"),
        ("text", b"\xff\xfe\xff", "decode"),
    ],
)
def test_a_folder_with_something_wrong(
    file: str, content: bytes, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / file).write_bytes(content)
    assert cli.main(["fuse", str(folder), "--text", str(folder / "text"), "--json"]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.out == ""


def test_inspect_takes_the_same_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", str(folder), "--text", str(folder / "text"), "--json"]
    assert cli.main(arguments) == 0
    assert len(json.loads(capsys.readouterr().out)["sites"]) == 2 * LAYERS + 1
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"cat": 3', '"cat": 3000').replace('"cat":3', '"cat":3000'))
    assert cli.main(arguments) == 2
    assert "BertModel can not be run on the text: index out of range" in capsys.readouterr().err
    file.write_text("{")
    assert cli.main(arguments) == 2
    assert "tokenizer.json can not be read" in capsys.readouterr().err


def test_code_in_the_folder_never_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert cli.main(["fuse", str(folder), "--json"]) == 2
    assert not (folder / "ran").exists()
    assert "can not be loaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "no config.json"),
        (("config.json",), "holds no weights"),
        (("config.json", "pytorch_model.bin"), "only pytorch_model.bin, a pickle, which could run code"),
    ],
)
def test_a_folder_without_a_safe_model(
    files: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    assert cli.main(["fuse", str(tmp_path), "--json"]) == 2
    assert reason in capsys.readouterr().err


def test_a_model_of_something_else_than_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    transformers.ViTModel(config).save_pretrained(folder)
    assert cli.main(["fuse", str(folder), "--json"]) == 2
    assert "holds a ViTModel, which takes pixel_values, not text" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fuse", "inspect"])
def test_an_encoder_with_a_decoder(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=len(WORDS), d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5Model(config).save_pretrained(folder)
    assert cli.main([command, str(folder), "--text", str(folder / "text"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if command == "inspect":
        padding = {site["site"].partition(".")[0]: site["padding"] for site in found["sites"]}
        assert padding == {"encoder": 3, "decoder": 3}  # of 6 and 3 words


def test_a_model_that_lacks_words_of_its_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"cat": 3', '"cat": 3000').replace('"cat":3', '"cat":3000'))
    assert cli.main(["fuse", str(folder), "--text", str(folder / "text"), "--json"]) == 2
    assert "BertModel can not be run on the text: index out of range" in capsys.readouterr().err


def test_a_path_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fuse", "no_such_model", "--json"]) == 2
    assert "neither a folder nor an installed package" in capsys.readouterr().err
    assert cli.main(["fuse", "x" * 300, "--json"]) == 2  # longer than a file system's names
    assert "neither a folder nor an installed package" in capsys.readouterr().err
