"""adapter.load: an adapter file as something to call, from anywhere."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import fails

import train_e2e
import train_glue
import train_read
import train_squad
from adapter import load
from data import UserError, e2e, glue
from data.hub import MINI, MODELS
from model import GPT2, RobertaClassifier
from weights import prepare, read_adapter, trainable, write_adapter

ROOT = Path(__file__).parent.parent
SENTENCES = ["Two neighbours yawned.", "The guests beside this old nephew waits.", "Who yawned?"]
PAIRS = [tuple(SENTENCES[:2]), tuple(SENTENCES[1:])]
HUT = {"method": "hut", "targets": "qv"}
MR = "name[The Eagle], food[Italian], area[riverside]"
QUESTIONS = [
    ("Who won?", "The Eagles lost to the Bears. " * 20),
    ("Who lost?", "The Eagles lost to the Bears."),
]
INPUTS = {  # task: (script, class of model, folder of the bundled one, inputs, settings of the adapter)
    "cola": (train_glue, "classifier", "roberta", SENTENCES, HUT),
    "stsb": (train_glue, "classifier", "roberta", PAIRS, {"method": "head", "r": None}),
    "squad": (train_squad, "span", "roberta", QUESTIONS, HUT | {"doc_stride": 8}),
    "e2e": (train_e2e, "generator", "gpt2", [MR, "name[Zizzi]"], HUT),
    "sst2": (train_read, "text to text", "t5", SENTENCES, {"method": "lora", "targets": "qv"}),
}  # fmt: skip


def test_threads_take_turns(tmp_path, monkeypatch):
    """Would catch: a text that is not cut, as another thread has switched the tokenizer's truncation off."""
    saved(tmp_path / "adapter.pt", "cola")
    predict, inside, most, encode = load(tmp_path / "adapter.pt"), [], [], glue.encode

    def slow(*given):
        inside.append(None)
        time.sleep(0.05)
        most.append(len(inside))
        inside.pop()
        return encode(*given)

    monkeypatch.setattr(glue, "encode", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predict, [SENTENCES] * 4))
    assert set(most) == {1} and all(one == found[0] for one in found)


def saved(path, task, model="mini", more=None, options=None):
    """An adapter file with drawn tensors, at `path`; `more` replaces what its config says."""
    _, use, folder, _, settings = INPUTS[task]
    model_class = MODELS[folder][use] if folder in MODELS else None
    settings = {"r": 2, "max_len": 28, "model": str(model), **settings, **(options or {})}
    args = argparse.Namespace(task=task, seed=0, dropout=None, **settings)
    labels = {"num_labels": 1 if task == "stsb" else 2} if use == "classifier" else {}
    directory = MINI / folder if model == "mini" else model
    made, base = prepare(args, model_class, directory, torch.device("cpu"), **labels)
    torch.manual_seed(1)
    for part in trainable(made):
        for tensor in part.values():
            tensor.data.add_(torch.randn_like(tensor), alpha=0.05)
    write_adapter(path, args, made, base)
    if more is not None:
        content = torch.load(path, weights_only=True)
        kept = {
            key: value for key, value in content["config"].items() if key not in ("text", "label", "labels")
        }
        torch.save(content | {"config": kept | more}, path)
    return path


@pytest.mark.parametrize("task", INPUTS)
def test_every_kind_answers_as_its_script_does(task, tmp_path, monkeypatch, capsys):
    """Would catch: two ways to predict that differ, answers in another order, padding that counts."""
    script, _, _, inputs, _ = INPUTS[task]
    path = saved(tmp_path / "adapter.pt", task)
    predictor = load(path)
    found = predictor(inputs)
    assert len(found) == len(inputs) and predictor([]) == []
    for item, answer in zip(inputs, found, strict=True):
        (alone,) = predictor([item])
        texts = [item] if isinstance(item, str) else item
        monkeypatch.setattr(sys, "argv", [script.__name__, "--adapter", str(path), "--predict", *texts])
        capsys.readouterr()
        script.main()
        if task in ("e2e", "sst2"):
            assert isinstance(answer, str) and alone == answer
            said = answer
        elif task == "stsb":
            assert alone[0] == pytest.approx(answer[0], abs=1e-5) and answer[1] is None
            said = f"score {answer[0]:.3f} (0 to 5)"
        else:
            assert alone[0] == answer[0] and alone[1] == pytest.approx(answer[1], abs=1e-5)
            assert 0 < answer[1] <= 1
            said = f"{answer[0]} ({answer[1]:.3f})"
        assert capsys.readouterr().out == said + "\n"


def test_a_text_is_cut_at_the_length_of_training(tmp_path):
    """Would catch: an adapter that reads more of a text than it did in its run."""
    text, same = "The guests beside this old nephew waits. " * 2, []
    for max_len in (10, 28):
        short, long = load(saved(tmp_path / "adapter.pt", "cola", options={"max_len": max_len}))(
            [text, text + "Who yawned?"]
        )
        same.append(short == long)
    assert same == [True, False]


@pytest.mark.parametrize("task", INPUTS)
def test_a_script_refuses_the_adapter_of_another(task, tmp_path, monkeypatch, capsys):
    """Would catch: a traceback, or a line about --task, --model or --max-len: whose adapter it is, is enough.

    RoBERTa and T5 have tasks of the same names.
    """
    path = saved(tmp_path / "adapter.pt", task)
    own = INPUTS[task][0]
    for script in (train_glue, train_squad, train_e2e, train_read):
        if script is not own:
            texts = SENTENCES[: 2 if script is train_squad else 1]
            monkeypatch.setattr(sys, "argv", [script.__name__, "--adapter", str(path), "--predict", *texts])
            expected = f"expected an adapter of {script.__name__}.py"
            line = fails(capsys, script.main)
            assert line == f"error: {path}: made by {own.__name__}.py for {task}: {expected}\n"


@pytest.mark.parametrize("task", ["cola", "squad", "e2e", "sst2"])
def test_an_empty_text_is_no_input(task, tmp_path, monkeypatch, capsys):
    """Would catch: an answer to nothing."""
    script, texts = INPUTS[task][0], ["Who won?", " "] if task == "squad" else [""]
    monkeypatch.setattr(sys, "argv", [script.__name__, "--adapter", "none.pt", "--predict", *texts])
    assert fails(capsys, script.main) == "error: --predict: expected text, in quotes, found none\n"


def test_decoding_is_that_of_the_run(tmp_path, monkeypatch, capsys):
    """Would catch: an adapter that decodes otherwise in Python, or without its options, than in its run."""
    search = {"beam_size": 1, "length_penalty": 0.0, "no_repeat_ngram": 0, "ngram_scope": "prompt"}
    path = saved(tmp_path / "adapter.pt", "e2e", options=search | {"max_new_tokens": 3})
    predictor = load(path)
    assert vars(predictor.args).items() >= (search | {"max_new_tokens": 3}).items()
    (short,) = predictor([MR])
    monkeypatch.setattr(sys, "argv", ["train_e2e.py", "--adapter", str(path), "--predict", MR])
    train_e2e.main()
    assert capsys.readouterr().out == f"{short}\n"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--max-new-tokens", "9"])
    train_e2e.main()
    assert len(capsys.readouterr().out) > len(short) + 1


def test_a_sentence_is_one_line_at_any_precision(tmp_path, monkeypatch):
    """Would catch: weights that are rounded before they are merged; a line break, which splits an output; a
    prompt that ends otherwise than in training.
    """
    path = saved(tmp_path / "adapter.pt", "e2e", options={"max_new_tokens": 2, "beam_size": 1})
    predictor = load(path, dtype="bfloat16")
    assert len(predictor([MR])) == 1
    asked, end = [], predictor.model.config.eos_token_id

    def generate(model, prompts, *given):
        asked.extend(prompts)
        return [predictor.tokenizer.encode(" A\n pub").ids]

    monkeypatch.setattr(GPT2, "generate", generate)
    assert predictor([MR]) == ["A pub"]
    trained_on = e2e.encode(predictor.tokenizer, [e2e.Example(e2e.linearise(MR), "")], end, 99)
    assert asked == [trained_on[0][0]]


def test_in_a_fresh_process_somewhere_else(tiny_model, tiny_glue, tmp_path, monkeypatch):
    """Would catch: a base that is found from the folder of the training alone."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "base")
    arguments = [
        "--task",
        "cola",
        "--model",
        "base",
        "--data",
        str(tiny_glue),
        "--out",
        "run",
        "--epochs",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["train_glue.py", *arguments])
    train_glue.main()
    path = tmp_path / "run" / "adapter.pt"
    assert read_adapter(path)["config"]["model"] == str(tmp_path / "base")
    call = f"from adapter import load; found = load({str(path)!r})(['the dog', 'a cat .'])"
    call = f"import json; {call}; print(json.dumps(found))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", call],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        check=True,
    )
    here = load(path)(["the dog", "a cat ."])
    for (label, probability), (same, other) in zip(json.loads(done.stdout), here, strict=True):
        assert label == same and probability == pytest.approx(other)


def test_the_base_may_move_and_must_be_the_same(tiny_model, tmp_path):
    """Would catch: an adapter over other weights, or one that is lost with its base's old place."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny_model, first)
    path = saved(tmp_path / "adapter.pt", "cola", first)
    before = load(path)(["the dog"])
    first.rename(second)
    with pytest.raises(UserError, match=r"adapter\.pt: its base: --model .*first: no such directory"):
        load(path)
    assert load(path, model=second)(["the dog"]) == before
    changed = RobertaClassifier.from_pretrained(second)
    changed.roberta.blocks[0].u.weight.data[0, 0] += 1e-3
    changed.save_pretrained(second)
    with pytest.raises(UserError, match="another base checkpoint"):
        load(path, model=second)


def test_an_older_adapter(tiny_model, tmp_path, monkeypatch):
    """Would catch: files from before that no longer load: a relative place, no columns in the config."""
    shutil.copytree(tiny_model, tmp_path / "base")
    path = saved(tmp_path / "adapter.pt", "cola", tmp_path / "base", {"model": "base"})
    monkeypatch.chdir(tmp_path)
    assert len(load(path)(["the dog", "a cat"])) == 2


def test_the_bundled_models_name_is_kept(tmp_path, monkeypatch):
    """Would catch: a directory called mini that is recorded in the place of the bundled model."""
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_adapter(saved(tmp_path / "adapter.pt", "cola"))["config"]["model"] == "mini"


def test_what_is_no_input_is_refused(tiny_model, tmp_path):
    """Would catch: a text that is taken for a list of letters, a pair whose second half is left out."""
    cola = load(saved(tmp_path / "cola.pt", "cola", tiny_model))
    for wrong in ("the dog", [("the dog", "a cat")], [("the dog", None)], [()], [None], [5]):
        with pytest.raises(UserError, match=r"cola: expected 1 text\(s\) an item"):
            cola(wrong)
    stsb = load(saved(tmp_path / "stsb.pt", "stsb", tiny_model))
    with pytest.raises(UserError, match=r"stsb: expected 2 text\(s\) an item, found \('the dog',\)"):
        stsb(["the dog"])
    assert stsb([["the dog", "a cat"]])[0][1] is None


def test_the_callers_random_numbers_are_left_alone(tiny_model, tmp_path):
    """Would catch: a seed that is set for the whole process."""
    path = saved(tmp_path / "adapter.pt", "cola", tiny_model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(path, device="cpu")
    assert torch.equal(torch.rand(3), expected)
