"""model.py against what transformers computed (tests/reference/), and its strict loading."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from model import (
    Roberta,
    RobertaClassifier,
    RobertaConfig,
    RobertaMaskedLM,
    RobertaSpan,
    read_config,
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
    last, states = model.roberta(IDS, MASK, return_states=True)
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


def test_dropout_is_where_transformers_has_it_and_only_in_training():
    """Would catch: a model that comes in training mode, or has lost one of its five places of dropout."""
    model = RobertaClassifier.from_pretrained(ROBERTA, num_labels=3)
    assert not model.training
    assert torch.equal(model(IDS, MASK), model(IDS, MASK))
    model.train()
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

    class Code:
        def __reduce__(self):
            return (Path.touch, (directory / "ran",))

    path.write_bytes(pickle.dumps({"x": Code()}, protocol=2))
    refused("refused")
    torch.save({"x": Code()}, path)
    refused("refused")
    assert not (directory / "ran").exists()
    path.rename(directory / "model.safetensors")
    refused(r"no such file \(it has only model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    for change, message in (
        ({"model_type": "bert"}, "model_type is 'bert': expected 'roberta'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ):
        (directory / "config.json").write_text(json.dumps(config | change))
        refused(message)
    (directory / "config.json").write_text("{")
    refused("not JSON")
    (directory / "config.json").unlink()
    refused("no such file")


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
