"""model.py against what transformers computed (tests/reference/), and its strict loading."""

import dataclasses
import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from conftest import with_states

from model import (
    Roberta,
    RobertaClassifier,
    RobertaConfig,
    RobertaMaskedLM,
    RobertaSpan,
    read_config,
    read_state,
    write_file,
)

ROBERTA = Path(__file__).parent / "reference" / "roberta"
EXPECTED = torch.load(ROBERTA / "expected.pt", weights_only=True)
STATE = torch.load(ROBERTA / "pytorch_model.bin", weights_only=True)
IDS, MASK = EXPECTED["input_ids"], EXPECTED["attention_mask"]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy to spoil, and a function that writes another state dict into it."""
    shutil.copytree(ROBERTA, tmp_path / "roberta")

    def write(state, **options):
        torch.save(state, tmp_path / "roberta" / "pytorch_model.bin", **options)
        return tmp_path / "roberta"

    return write


def test_hidden_states_are_transformers():
    """Would catch: a wrong norm, GELU, scale, mask, position or name. Two rows of the three are padded."""
    model = RobertaClassifier.from_pretrained(ROBERTA, num_labels=3)
    last, states = with_states(model.roberta, IDS, MASK)
    assert len(states) == model.config.num_hidden_layers
    kept = MASK.bool()
    for ours, theirs in zip([model.roberta.embeddings(IDS), *states], EXPECTED["hidden_states"], strict=True):
        close(ours[kept], theirs[kept])
    assert torch.equal(last, states[-1])


def test_classifier_and_masked_lm_are_transformers():
    """Would catch: a head in another order, an untied output layer."""
    classifier = RobertaClassifier.from_pretrained(ROBERTA, num_labels=3)
    classifier.load_state_dict(EXPECTED["cls_head"], strict=False)
    close(classifier(IDS, MASK), EXPECTED["cls_logits"])
    masked_lm = RobertaMaskedLM.from_pretrained(ROBERTA)
    kept = MASK.bool()
    close(masked_lm(IDS, MASK)[kept], EXPECTED["mlm_logits"][kept])
    close(masked_lm(IDS, MASK, where=kept), EXPECTED["mlm_logits"][kept])


def test_span_logits_are_transformers(tmp_path):
    """Would catch: start and end swapped, a head that is refused, not written or read under another name."""
    span = RobertaSpan.from_pretrained(ROBERTA)
    span.load_state_dict(EXPECTED["qa_head"], strict=False)
    span.save_pretrained(tmp_path)
    again = RobertaSpan.from_pretrained(tmp_path)
    for model in (span, again):
        start, end = model(IDS, MASK)
        close(start[MASK.bool()], EXPECTED["qa_start"][MASK.bool()])
        close(end[MASK.bool()], EXPECTED["qa_end"][MASK.bool()])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["RobertaForQuestionAnswering"]
    classifier = RobertaClassifier.from_pretrained(tmp_path, num_labels=3)  # whose own head starts anew
    close(classifier.roberta(IDS, MASK), span.roberta(IDS, MASK))


def test_padding_does_not_matter():
    """Would catch: attention or positions that see padding; and a mask where there is none."""
    model = RobertaClassifier.from_pretrained(ROBERTA, num_labels=3)
    alone = torch.cat([model(IDS[i : i + 1, : MASK[i].sum()]) for i in range(3)])
    close(model(IDS, MASK), alone)


def test_the_mean_over_tokens_is_not_rounded_to_bfloat16():
    """Would catch: --pool mean as a product of matrices, which autocast rounds, beside exact first tokens."""
    config = RobertaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
    model, mask = RobertaClassifier(config, pool="mean"), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    x = torch.randn(2, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.pooled(x, mask)
    torch.testing.assert_close(found, torch.stack([x[0, :3].mean(0), x[1, :2].mean(0)]))


def test_dropout_is_where_transformers_has_it_and_only_in_training():
    """Would catch: a model that comes in training mode, or has lost one of its five places of dropout."""
    model = RobertaClassifier.from_pretrained(ROBERTA, num_labels=3)
    assert not model.training
    assert torch.equal(model(IDS, MASK), model(IDS, MASK))
    model.train()
    used = []
    model.classifier.dropout.register_forward_hook(lambda *_: used.append(None))
    model(IDS, MASK)
    assert len(used) == 2  # before each of the head's two layers
    rare = dataclasses.replace(model.config, classifier_dropout=0.25)
    assert RobertaClassifier(rare).classifier.dropout.p == 0.25
    block = "roberta.blocks.0"
    for place in ("roberta.embeddings.dropout", f"{block}.attention.dropout", f"{block}.attention_dropout",
                  f"{block}.ffn_dropout", "classifier.dropout"):  # fmt: skip
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        close(model(IDS, MASK), model(IDS, MASK))
        model.get_submodule(place).p = 0.5
        assert not torch.allclose(model(IDS, MASK), model(IDS, MASK)), place


@pytest.mark.parametrize("prefix", ["roberta.", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts_of_published_files(checkpoint, prefix, zipped):
    """Would catch: refusing a bare encoder, or a plain pickle, as old published checkpoints are."""
    body = {k.removeprefix("roberta."): v for k, v in STATE.items() if k.startswith("roberta.")}
    directory = checkpoint({prefix + k: v for k, v in body.items()}, _use_new_zipfile_serialization=zipped)
    model = RobertaClassifier.from_pretrained(directory, num_labels=3)
    close(model.roberta(IDS, MASK)[MASK.bool()], EXPECTED["hidden_states"][-1][MASK.bool()])


def test_save_and_load(tmp_path):
    """Would catch: a name map that is not one to one, or a head that is not written."""
    model = RobertaClassifier(read_config(ROBERTA, RobertaConfig, "roberta"), num_labels=1)
    model.eval().save_pretrained(tmp_path, id2label={0: "score"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["RobertaForSequenceClassification"]
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "score"}
    again = RobertaClassifier.from_pretrained(tmp_path, num_labels=1)
    assert torch.equal(model(IDS, MASK), again(IDS, MASK))
    masked_lm = RobertaMaskedLM.from_pretrained(ROBERTA)
    masked_lm.save_pretrained(tmp_path / "half", dtype=torch.float16)
    half = RobertaMaskedLM.from_pretrained(tmp_path / "half")
    assert half(IDS, MASK).dtype == torch.float32
    torch.testing.assert_close(half(IDS, MASK), masked_lm(IDS, MASK), rtol=0.05, atol=0.1)


def without(key):
    return {k: v for k, v in STATE.items() if k != key}


QUERY = "roberta.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without(QUERY), r"layer\.1\.attention\.self\.query\.weight' is missing: expected shape \(24, 24\)"),
        (STATE | {QUERY: torch.ones(24, 23)}, r"query\.weight' has shape \(24, 23\): expected \(24, 24\)"),
        (STATE | {"roberta.encoder.layer.2.output.dense.bias": torch.ones(24)}, r"layer\.2.*not expected"),
        (
            STATE | {QUERY.removeprefix("roberta."): STATE[QUERY]},
            "query.weight' is there twice, with and without",
        ),
        (STATE | {"something": torch.ones(1)}, "'something' of shape .* is not expected"),
        (STATE | {"lm_head.decoder.weight": torch.ones(120, 24)}, "should be tied"),
        (STATE | {"classifier.dense.weight": torch.ones(24, 24)}, r"classifier\.dense\.bias' is missing"),
        ([1, 2], "expected a state dict"),
    ],
)
def test_every_name_and_shape_is_checked(checkpoint, state, message):
    """Would catch: a tensor left at its random start, or one of the file's that went nowhere."""
    directory = checkpoint(state)
    with pytest.raises(ValueError, match=message) as error:
        (RobertaMaskedLM if "tied" in message else RobertaClassifier).from_pretrained(directory)
    assert "pytorch_model.bin" in str(error.value)


def test_files_that_are_no_checkpoint(checkpoint):
    """Would catch: code run from a pickle, a traceback for a cut file, a silent choice among formats."""
    directory = checkpoint(STATE)
    path = directory / "pytorch_model.bin"

    def refused(message):
        with pytest.raises(ValueError, match=message):
            RobertaClassifier.from_pretrained(directory)

    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("truncated")
    path.write_bytes(b"")
    refused("truncated")
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:30])  # within a number: struct.error
    refused("truncated")

    class Code:
        def __reduce__(self):
            return (Path.touch, (directory / "ran",))

    path.write_bytes(pickle.dumps({"x": Code()}, protocol=2))
    refused("refused")
    torch.save({"x": Code()}, path)
    refused("refused")
    assert not (directory / "ran").exists()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(r"pytorch_model\.bin: a git-LFS pointer, .* run 'git lfs pull'[^\n]*$")
    path.rename(directory / "model.safetensors")
    refused(r"model\.safetensors: a git-LFS pointer, .* run 'git lfs pull'")
    (directory / "model.safetensors").unlink()
    refused("no such file: expected model.safetensors or pytorch_model.bin")
    config = json.loads((directory / "config.json").read_text())
    for change, message in (
        ({"model_type": "bert"}, "'bert': expected 'roberta' or 'xlm-roberta' or 'camembert'$"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ):
        (directory / "config.json").write_text(json.dumps(config | change))
        refused(message)
    (directory / "config.json").write_text("{")
    refused("not JSON")
    (directory / "config.json").write_text("[]")
    refused("not a JSON object")
    (directory / "config.json").unlink()
    refused("no such file")


# ---- safetensors and files in parts

KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
         torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip


def safetensors(state, header=None, content=None):
    """A safetensors file's bytes, written by its description; `header` and `content` take what is spoilt."""
    described, parts, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in state.items():
        parts.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        begin, end = end, end + len(parts[-1])
        about = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        described[name] = about
    text = json.dumps(described).encode() if header is None else header
    return struct.pack("<Q", len(text)) + text + (b"".join(parts) if content is None else content)


def in_parts(directory, name, write):
    """STATE in two files and their index, which is returned as a path and a dict."""
    stem, suffix = name.split(".")
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    names = {key: files[i % 2] for i, key in enumerate(STATE)}
    for file in files:
        write({key: STATE[key] for key in names if names[key] == file}, directory / file)
    path = directory / f"{name}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": names}))
    return path, names


def write_safetensors(state, path):
    path.write_bytes(safetensors(state))


def test_safetensors_of_every_dtype(tmp_path):
    """Would catch: a dtype taken for another, a tensor that is off, an unaligned or empty one refused."""
    values = torch.tensor([[0, 1, 2], [3, 4, 250]])
    state = {str(dtype): values.to(dtype) for dtype in KINDS}
    state |= {
        "scalar": torch.tensor(3.0),
        "empty": torch.ones(0, 4),
        "last": torch.tensor([7], dtype=torch.int64),
    }
    for more in ({}, {"odd": torch.tensor([True])}):  # each next one begins at an odd byte
        path = tmp_path / "model.safetensors"
        write_safetensors(more | state, path)
        found = read_state(path)
        assert found.keys() == (more | state).keys()
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("parts", [False, True])
def test_every_layout_of_weights_is_read(checkpoint, name, parts):
    """Would catch: one that is refused, or read where transformers reads another: safetensors first."""
    directory = checkpoint(STATE)
    expected = RobertaMaskedLM.from_pretrained(directory)(IDS, MASK)
    (directory / "pytorch_model.bin").unlink()
    write = write_safetensors if name == "model.safetensors" else torch.save
    if parts:
        in_parts(directory, name, write)
    else:
        write(STATE, directory / name)
    later = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ]
    for worse in later[later.index(name) + parts + 1 :]:
        (directory / worse).write_bytes(b"damaged")
    assert torch.equal(RobertaMaskedLM.from_pretrained(directory)(IDS, MASK), expected)


X = {"x": torch.ones(2, 3), "y": torch.ones(4)}  # bytes 0 to 24 and 24 to 40


def spoilt(name, **change):
    """The bytes of X with another description of one of its tensors."""
    described = {
        "x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "y": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
    }
    described[name] |= change
    return safetensors(
        X,
        json.dumps({k: {n: v for n, v in d.items() if v is not None} for k, d in described.items()}).encode(),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"can't be read as safetensors"),
        (b"\x09", r"can't be read as safetensors"),
        (safetensors(X)[:60], r"can't be read as safetensors \(its header ends at byte \d+ of 60"),
        (struct.pack("<Q", 2**63) + b"{}", r"can't .* header ends at byte [\d,]+ of 10"),
        (safetensors(X, b"nonsense"), r"can't be read as safetensors \(Expecting value"),
        (safetensors(X, b"\xff\xfe{"), r"can't be read as safetensors"),
        (safetensors(X, b"[" * 100_000), r"can't be read as safetensors"),
        (safetensors(X, b"[1, 2]"), r"can't be read as safetensors"),
        (safetensors(X, b'{"x": 1}'), r"can't be read as safetensors"),
        (safetensors(X)[:-1], r".*tensor 'y' is {.* \[24, 40\]} of 39: .* from byte 24 on"),
        (safetensors(X) + b"more", r".*its last 4 bytes belong to no tensor"),
        (spoilt("y", data_offsets=[24, 48], shape=[6]), r".*tensor 'y' is {.* \[24, 48\]} of 40"),
        (spoilt("y", data_offsets=[24, 36]), r".*tensor 'y' is {'dtype': 'F32', .* \[24, 36\]}"),
        (spoilt("y", shape=[-2, -2]), r".*tensor 'y' is {.* \[-2, -2\]"),
        (spoilt("y", dtype="F64"), r".*tensor 'y' is {'dtype': 'F64'"),
        (spoilt("y", dtype="F8_E4M3"), r".*tensor 'y' is {'dtype': 'F8_E4M3', .*: expected .* in F64 or "),
        (spoilt("y", data_offsets=[20, 36]), r".*tensor 'y' is {.* \[20, 36\]} of 40: .* from byte 24"),
        (spoilt("x", data_offsets=[-24, 0]), r".*tensor 'x' is {.* \[-24, 0\]}"),
        (spoilt("x", data_offsets=[16, 40]), r".*tensor 'x' is {.* \[16, 40\]} of 40: .* from byte 0"),
        (spoilt("y", data_offsets=[24, 40, 56]), r"can't be read as safetensors"),
        (spoilt("y", data_offsets=None), r"can't be read as safetensors \('data_offsets'"),
        (spoilt("y", shape=[1e999]), r"can't be read as safetensors"),
        (spoilt("y").replace(b'"y"', b'"x"'), r".*tensor 'x' is {.* \[24, 40\]} of 40: expected it once"),
    ],
)  # fmt: skip
def test_damaged_safetensors(tmp_path, content, message):
    """Would catch: a traceback for a damaged file, or tensors read from where they are not."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {message}") as error:
        read_state(tmp_path / "model.safetensors")
    assert "\n" not in str(error.value)


def test_an_index_that_is_not_true(checkpoint):
    """Would catch: a tensor left out or taken from the wrong file, a path out of the directory."""
    directory = checkpoint(STATE)
    path, names = in_parts(directory, "model.safetensors", write_safetensors)
    one, two = (directory / file for file in sorted(set(names.values())))

    def refused(content, message):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            RobertaMaskedLM.from_pretrained(directory)

    def index(change):
        return {"weight_map": names | change}

    refused({}, r"index\.json: 'weight_map' holds None")
    refused({"weight_map": [1]}, r"'weight_map' holds \[1\]")
    refused(index({QUERY: "../x.safetensors"}), r"'weight_map' holds '\.\./x\.safetensors'")
    refused(index({QUERY: path.name}), r"'weight_map' holds 'model\.safetensors\.index\.json'")
    refused(index({"z": "other.safetensors"}), r"other\.safetensors: no such file")
    refused(index({"z": one.name}), rf"index\.json: tensor 'z' is missing from {one.name}")
    refused(
        {"weight_map": {k: v for k, v in names.items() if k != QUERY}}, r"query\.weight' is in model-0000"
    )
    two.write_bytes(two.read_bytes()[:-1])
    refused(index({}), rf"{two.name}: can't be read .*tensor .* is {{")


@pytest.mark.parametrize(("kind", "theirs"), [("xlm-roberta", "XLMRoberta"), ("camembert", "Camembert")])
def test_robertas_by_other_names(checkpoint, tmp_path, kind, theirs):
    """Would catch: one that is refused, or that becomes a plain RoBERTa when it is written."""
    directory = checkpoint(STATE)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    model = RobertaClassifier.from_pretrained(directory, num_labels=3)
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["model_type"] == kind and config["architectures"] == [f"{theirs}ForSequenceClassification"]
    again = RobertaClassifier.from_pretrained(tmp_path / "again", num_labels=3)
    assert torch.equal(again(IDS, MASK), model(IDS, MASK))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_nothing_is_written_where_other_weights_would_be_read(checkpoint, name):
    """Would catch: an export beside an older model.safetensors, which every reader takes for the new one."""
    directory = checkpoint(STATE)
    model = RobertaClassifier.from_pretrained(directory)
    (directory / name).write_text("another's")
    before = (directory / "pytorch_model.bin").read_bytes()
    with pytest.raises(ValueError, match=f"{name}: would be read"):
        model.save_pretrained(directory)
    assert (directory / "pytorch_model.bin").read_bytes() == before


def test_input_longer_than_the_position_table():
    """Would catch: an index error (or, on a GPU, a crash) in place of a message."""
    with pytest.raises(ValueError, match="33 input tokens: the position table holds 32"):
        Roberta(read_config(ROBERTA, RobertaConfig, "roberta"))(torch.full((1, 33), 5))


def test_write_file_keeps_the_old_one_until_the_new_is_whole(tmp_path):
    """Would catch: writing in place. A write that fails half way leaves what was there."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_file(path, fail)
    assert path.read_bytes() == b"old"
    write_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["file"]
