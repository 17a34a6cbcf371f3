"""data/: GLUE's files, downloads, tokens and batches."""

import hashlib
import io
import json
import shutil
import ssl
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from data import UserError, download, glue
from data.batching import Batches, hold_out, pad, padding_share, shuffled_batches, sorted_batches, subset
from data.hub import checkpoint, load_tokenizer, open_checkpoint
from model import RobertaClassifier, RobertaSpan

ROWS = {  # one row of each task in its official layout: the header, the row, what it should be read as
    "sst2": ("sentence\tlabel", ' it is " good \t1', (' it is " good ', None, 1)),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\tOne "a\tTwo',
        ('One "a', "Two", 1),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "0\t1\t2\tWhy?\tWho?\t0",
        ("Why?", "Who?", 0),
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tg\tf\ty\t0\tn\tn\tOne\tTwo\t3.800",
        ("One", "Two", 3.8),
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
        "\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t2\tg\tb\tb\tp\tp\tOne\tTwo\tneutral\tcontradiction",
        ("One", "Two", 2),
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWhy?\tSo.\tnot_entailment", ("Why?", "So.", 1)),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tOne\tTwo\tentailment", ("One", "Two", 0)),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\tOne\tTwo\t1", ("One", "Two", 1)),
}


@pytest.mark.parametrize("task", ROWS)
def test_official_layouts(tmp_path, task):
    """Would catch: a wrong column, a swapped pair or label, a BOM or quotation marks taken for syntax."""
    header, row, expected = ROWS[task]
    path = tmp_path / "dev.tsv"
    # one line ends as on Windows, and the last one without a line end
    path.write_text(f"{header}\n{row}\r\n{row}", encoding="utf-8")
    assert glue.read_split(task, path) == ([expected, expected], 0)


@pytest.mark.parametrize("score", [0.0, 5.0])
def test_the_ends_of_the_scale_are_scores(tmp_path, score):
    """Would catch: STS-B's many pairs of equal sentences refused."""
    header, row, _ = ROWS["stsb"]
    (tmp_path / "f.tsv").write_text(f"{header}\n{row.replace('3.800', f'{score:.3f}')}\n")
    assert glue.read_split("stsb", tmp_path / "f.tsv")[0][0].label == score


def test_cola_has_no_header_but_its_test_file_has(tmp_path):
    """Would catch: a first training row lost, or a first test row made of the header."""
    path = tmp_path / "f.tsv"
    path.write_text("gj04\t1\t\tHe left.\ngj04\t0\t*\tLeft he\u2028did.\n", encoding="utf-8")
    assert glue.read_split("cola", path)[0] == [("He left.", None, 1), ("Left he\u2028did.", None, 0)]
    path.write_text("index\tsentence\n0\tHe left.\n")
    assert glue.read_split("cola", path, labelled=False)[0] == [("He left.", None, None)]


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("cola", b"s\t1\t\tfine\ns\t1\n", r"f\.tsv:2: 2 columns: expected 4"),
        ("cola", b"s\t2\t\tfine\n", r"f\.tsv:1: unknown label '2': expected 0 or 1"),
        ("cola", b"", r"f\.tsv: no examples"),
        ("cola", b"s\t1\t\tfine\ns\t1\t\tcaf\xe9\n", r"f\.tsv:2: not UTF-8: byte 0xe9"),
        ("sst2", b"sentence\tlabel\n", r"f\.tsv: no examples"),
        ("sst2", b"text\tlabel\nfine\t1\n", r"f\.tsv:1: no column 'sentence'"),
        (
            "stsb",
            (ROWS["stsb"][0] + "\n0\tg\tf\ty\t0\tn\tn\tOne\tTwo\tgood").encode(),
            r"f\.tsv:2: score 'good': expected a number",
        ),
        (
            "stsb",
            (ROWS["stsb"][0] + "\n0\tg\tf\ty\t0\tn\tn\tOne\tTwo\tnan").encode(),
            r"f\.tsv:2: score 'nan'",
        ),
        (
            "stsb",
            (ROWS["stsb"][0] + "\n0\tg\tf\ty\t0\tn\tn\tOne\tTwo\t5.1").encode(),
            r"f\.tsv:2: score '5.1': expected a number from 0 to 5",
        ),
        (
            "rte",
            b"index\tsentence1\tsentence2\tlabel\n0\tOne\tTwo\tneutral\n",
            "unknown label 'neutral': expected entailment or not",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, task, content, message):
    """Would catch: a bad row that is skipped, guessed at, or reported without its place."""
    path = tmp_path / "f.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        glue.read_split(task, path)


def test_short_rows_are_skipped_and_counted_for_qqp_only(tmp_path):
    """Would catch: failing on QQP's official training file."""
    path = tmp_path / "f.tsv"
    path.write_text(f"{ROWS['qqp'][0]}\n{ROWS['qqp'][1]}\n1\t2\t3\tonly\n")
    assert glue.read_split("qqp", path) == ([("Why?", "Who?", 0)], 1)
    test = tmp_path / "test.tsv"  # where a row that is left out would shift all later answers
    test.write_text("id\tquestion1\tquestion2\n0\tWhy?\tWho?\n1\tWhy?\n")
    with pytest.raises(UserError, match=":3: 2 columns: expected 3"):
        glue.read_split("qqp", test, labelled=False)


def test_missing_file(tmp_path):
    """Would catch: a traceback where --data names the wrong folder."""
    with pytest.raises(UserError, match=r"CoLA/train\.tsv: No such file.*--data"):
        glue.load("cola", tmp_path)


def test_mrpc_from_microsofts_files(tmp_path):
    """Would catch: a dev row left in train, or ids compared in the wrong order."""
    folder = tmp_path / "MRPC"
    folder.mkdir()
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (folder / "msr_paraphrase_train.txt").write_text(
        header + "1\t10\t20\tA\tB\n0\t20\t10\tC\tD\n", encoding="utf-8"
    )
    (folder / "msr_paraphrase_test.txt").write_text(header + "1\t5\t6\tE\tF\n", encoding="utf-8")
    (folder / "mrpc_dev_ids.tsv").write_text("20\t10\n")
    assert glue.load("mrpc", tmp_path) == {"train": [("A", "B", 1)], "dev": [("C", "D", 0)]}
    assert glue.load("mrpc", tmp_path, splits=("test",)) == {"test": [("E", "F", None)]}


def test_mnli_has_two_development_sets(tmp_path):
    """Would catch: the mismatched set forgotten; --dev-file not standing in for the first."""
    (tmp_path / "MNLI").mkdir()
    for name in ("train", "dev_matched", "dev_mismatched"):
        (tmp_path / "MNLI" / f"{name}.tsv").write_text("\n".join(ROWS["mnli"][:2]))
    assert list(glue.load("mnli", tmp_path)) == ["train", "dev_matched", "dev_mismatched"]
    file = tmp_path / "MNLI" / "train.tsv"
    assert list(glue.load("mnli", train_file=file, dev_file=file)) == ["train", "dev_matched"]


# ---- downloads


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for name in names:
            content.writestr(name, "index\tsentence1\tsentence2\tlabel\n0\tOne\tTwo\tentailment\n")
    return buffer.getvalue()


def serve(server, tmp_path, monkeypatch, content, claimed=None):
    """Puts RTE.zip on the server, in place of the official one; -> (the server's files, the cache)."""
    address, files = server
    files["RTE.zip"] = (content, claimed or len(content))
    monkeypatch.setitem(glue.SHA256, "RTE.zip", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(glue, "GLUE", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return files, tmp_path / "hut" / "glue"


def test_download_once(server, tmp_path, monkeypatch):
    """Would catch: files that are fetched again, or left under a temporary name."""
    files, folder = serve(server, tmp_path, monkeypatch, archive("RTE/train.tsv", "RTE/dev.tsv"))
    assert glue.download("rte") == folder
    files.clear()
    assert len(glue.load("rte")["dev"]) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["RTE", "RTE.zip"]


def test_two_processes_may_download_at_once(server, tmp_path, monkeypatch):
    """Would catch: a temporary file of both, as torchrun's processes and a sweep's runs begin together."""
    _, folder = serve(server, tmp_path, monkeypatch, archive("RTE/train.tsv", "RTE/dev.tsv"))
    urlopen, both = download.urllib.request.urlopen, threading.Barrier(2, timeout=60)

    def together(*given, **more):
        both.wait()
        return urlopen(*given, **more)

    monkeypatch.setattr(download.urllib.request, "urlopen", together)
    monkeypatch.setattr(download.os, "getpid", threading.get_ident)  # threads stand for processes
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(glue.download, ["rte"] * 2)) == [folder] * 2
    assert sorted(p.name for p in folder.rglob("*")) == ["RTE", "RTE.zip", "dev.tsv", "train.tsv"]


@pytest.mark.parametrize("fault", ["wrong", "cut", "missing", "evil", "not a zip"])
def test_a_bad_download_is_refused_and_leaves_nothing(server, tmp_path, monkeypatch, fault):
    """Would catch: a wrong or cut file that is used; a path in the archive that leaves the folder."""
    content = archive("RTE/train.tsv", "RTE/dev.tsv")
    message = {
        "wrong": "has sha256",
        "cut": "cut off|IncompleteRead",
        "missing": "404",
        "evil": "expected one folder",
        "not a zip": "not a whole zip",
    }
    if fault == "evil":
        content = archive("RTE/train.tsv", "../evil")
    if fault == "not a zip":
        content = content[:50]
    claimed = len(content) + 9 if fault == "cut" else None
    files, folder = serve(server, tmp_path, monkeypatch, content, claimed)
    if fault == "wrong":
        files["RTE.zip"] = (content + b"!", len(content) + 1)
    if fault == "missing":
        files.clear()
    with pytest.raises(UserError, match=message[fault]):
        glue.download("rte")
    kept = [p.name for p in folder.iterdir()]
    assert kept == (["RTE.zip"] if fault in ("evil", "not a zip") else [])
    assert [p.name for p in tmp_path.iterdir()] == ["hut"]


def test_a_network_that_breaks_off_is_not_called_a_full_disk(tmp_path, monkeypatch):
    """Would catch: "could not be written" where a TLS connection ends in the middle of a file."""

    class Reply(io.BytesIO):
        headers = {}

        def read(self, n):
            raise ssl.SSLEOFError("EOF occurred in violation of protocol")

    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *given, **more: Reply())
    with pytest.raises(UserError, match="could not be reached"):
        download.fetch("https://x", tmp_path / "x", "0")


def test_no_network_is_one_line_with_the_ways_out(tmp_path):
    """Would catch: a traceback on the first command of a user without a network."""
    with pytest.raises(UserError, match=r"could not be reached .*--model DIR --data DIR.*--model mini"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "x", "0")


def test_hub_names(tmp_path, monkeypatch):
    """Would catch: a directory that is looked up on the hub; errors of the hub as tracebacks."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    assert checkpoint(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="no such directory, and not a hub name"):
        checkpoint("no/such/directory")

    def offline(name, file):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"roberta-large: .* could not be reached.*--model mini"):
        checkpoint("roberta-large")

    def repository(files, missing=EntryNotFoundError):
        def download(name, file):
            if file not in files:
                raise missing("404")
            fetched.append(file)
            return str(tmp_path / file)

        fetched.clear()
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    fetched, small, weights = [], ["config.json", "tokenizer.json"], "pytorch_model.bin"
    for missing in (EntryNotFoundError, LocalEntryNotFoundError):  # the second: offline, from the cache
        for file in ("model.safetensors", weights):
            repository([*small, file], missing)
            assert checkpoint("some/model") == tmp_path and fetched == [*small, file]
    repository([*small, "model.safetensors", weights])
    assert checkpoint("some/model") == tmp_path and fetched == [*small, "model.safetensors"]
    parts = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    repository([*small, index.name, *parts.values()])
    assert checkpoint("some/model") == tmp_path and sorted(fetched[3:]) == sorted(set(parts.values()))
    repository([*small, index.name, "model-1.safetensors"])
    with pytest.raises(UserError, match=r"some/model: no model-2\.safetensors: choose another"):
        checkpoint("some/model")
    index.write_text("{}")
    with pytest.raises(UserError, match=r"some/model: .*index\.json: 'weight_map' holds None"):
        checkpoint("some/model")
    repository(small)
    with pytest.raises(
        UserError, match=r"no model\.safetensors or .* or pytorch_model\.bin.*: choose another"
    ):
        checkpoint("some/model")


def test_models_and_uses(tiny_model, tmp_path):
    """Would catch: an XLM-RoBERTa or CamemBERT that no script takes, a refusal without what goes."""
    shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((tiny_model / "config.json").read_text())
    for kind in ("roberta", "xlm-roberta", "camembert"):
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        for use, model_class in (("classifier", RobertaClassifier), ("span", RobertaSpan)):
            _, found, read, _ = open_checkpoint(tmp_path / "model", use)
            assert found is model_class and read.model_type == kind
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    for use, expected in (
        ("classifier", "'roberta' or 'xlm-roberta' or 'camembert'"),
        ("span", "'roberta' or 'xlm-roberta' or 'camembert'"),
        ("generator", "'gpt2'"),
        ("text to text", "'t5'"),
    ):
        with pytest.raises(UserError, match=f"model_type is 'bert': expected {expected}$"):
            open_checkpoint(tmp_path / "model", use)


# ---- batches


def test_tokens(tiny_model):
    """Would catch: special tokens that are missing or doubled, a pair cut at its shorter text."""
    tokenizer = load_tokenizer(tiny_model, 120)
    single, pair = glue.Example("the dog", None, 0), glue.Example("the dog sees the cat", "a girl", 0)
    assert glue.encode(tokenizer, [single, pair], 20) == [[0, 4, 6, 2], [0, 4, 6, 10, 4, 7, 2, 2, 5, 8, 2]]
    assert glue.encode(tokenizer, [pair], 8) == [[0, 4, 6, 2, 2, 5, 8, 2]]
    turned = pair._replace(first=pair.second, second=pair.first)
    assert glue.encode(tokenizer, [turned], 8) == [[0, 5, 8, 2, 2, 4, 6, 2]]
    assert tokenizer.truncation is None  # or what is encoded next would be cut


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_model, tmp_path):
    """Would catch: an index error in the middle of training."""
    with pytest.raises(UserError, match="19 tokens: the model's embedding has 10"):
        load_tokenizer(tiny_model, 10)
    with pytest.raises(UserError, match=r"tokenizer\.json: expected .*No such file"):
        load_tokenizer(tmp_path, 10)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=r"a git-LFS pointer, .*git lfs pull"):
        load_tokenizer(tmp_path, 10)


@pytest.mark.parametrize("n", [1, 7, 800, 1001])
def test_each_example_once_an_epoch(n):
    """Would catch: batches that drop or repeat examples, or more of them than are counted."""
    lengths = np.random.default_rng(0).integers(3, 40, n).tolist()
    batches = shuffled_batches(lengths, 16, [0, 0])
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert len(batches) == -(-n // 16) and all(0 < len(batch) <= 16 for batch in batches)
    for accumulate in (1, 3):
        grouped = Batches(lengths, 16, accumulate, 0)
        assert grouped.steps == len(grouped.epoch(0)) == -(-len(batches) // accumulate)
    scored = [i for batch in sorted_batches(lengths, 16) for i in batch]
    assert sorted(scored) == list(range(n))
    assert [lengths[i] for i in scored] == sorted(lengths, reverse=True)  # memory runs out at once or never


def test_batches_depend_on_seed_and_epoch_and_have_little_padding():
    """Would catch: epochs or seeds that are all alike; batches by chance alone, at about 45 % padding here;
    an epoch that goes from short to long.
    """
    lengths = np.random.default_rng(0).integers(3, 40, 2000).tolist()

    def batches(seed, epoch):
        return Batches(lengths, 16, 1, seed).batches(epoch)

    first = batches(0, 0)
    assert first == batches(0, 0) and first not in (batches(0, 1), batches(1, 0), batches(1, 1))
    assert padding_share(lengths, first) < 0.05
    widths = [max(lengths[i] for i in batch) for batch in first[:50]]
    assert widths != sorted(widths)


def test_pad():
    """Would catch: padding on the wrong side, a mask the wrong way round."""
    ids, mask = pad([[5, 6, 7], [8]], 1)
    assert torch.equal(ids, torch.tensor([[5, 6, 7], [8, 1, 1]]))
    assert torch.equal(mask, torch.tensor([[True, True, True], [True, False, False]]))
    assert pad([[5, 6], [7, 8]], 1)[1] is None


def test_subset_is_the_same_for_all_and_keeps_the_order():
    """Would catch: --limit-train that takes the first rows of a sorted file."""
    some = subset(list(range(100)), 10)
    assert some == sorted(some) == subset(list(range(100)), 10) and some != list(range(10))
    assert subset([1, 2], 5) == [1, 2]


def test_hold_out_keeps_a_text_on_one_side():
    """Would catch: an example that is lost, in both parts or in another order; a text on both sides."""
    examples = [glue.Example(f"text {i // 2}", None, i % 2) for i in range(4000)]
    part, held = hold_out(examples)
    assert (
        sorted(part + held) == sorted(examples)
        and len(held) == 500
        and part == [e for e in examples if e in part]
    )
    assert not {e.first for e in part} & {e.first for e in held} and hold_out(examples) == [part, held]
    sizes = {n: len(hold_out([glue.Example(str(i), None, 0) for i in range(n)])[1]) for n in (2, 40, 9000)}
    assert sizes == {2: 1, 40: 10, 9000: 900}
    often = [glue.Example("ok" if i < 90 else f"text {i}", None, 0) for i in range(100)]
    assert {len(hold_out(some, 10)[1]) for some in (often, often[::-1])} == {10}  # not the 90
    assert len(hold_out(often[80:92], 1)[1]) == 1 and len(hold_out(examples[:4], 1)[1]) == 2
    with pytest.raises(UserError, match="2 training examples with one text"):
        hold_out(examples[:2])


@pytest.mark.parametrize("spread", [2, 40, 400])
def test_few_padded_lengths_hold_every_batch_with_little_padding(spread):
    """Would catch: a length that is too short, more padding than is allowed, a length for each batch."""
    lengths = (np.random.default_rng(0).integers(0, spread, 2000) + 8).tolist()
    batches = Batches(lengths, 4, 1, 0)
    kept = batches.padded_lengths()
    assert max(kept) == max(lengths) and len(kept) <= 15
    padded = [min(n for n in kept if n >= max(lengths[i] for i in b)) * len(b) for (b,) in batches.epoch(0)]
    assert 1 - sum(lengths) / sum(padded) < 0.08
    ids, mask = pad([[5, 6], [7, 8]], 1, lengths=[1, 3, 4])
    assert ids.tolist() == [[5, 6, 1], [7, 8, 1]] and mask.tolist() == [[True, True, False]] * 2
