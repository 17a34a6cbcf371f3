"""Writes squad_scores.json: answers, references, and their scores by the official evaluate-v1.1.py.

usage: python tests/reference/make_squad.py SCRIPT

AllenNLP 0.9 also has this script, as allennlp/tools/squad_eval.py.
"""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

CASES = {  # name: (answer, references)
    "the same": ("a red kettle", ["a red kettle"]),
    "case, article and full stop aside": ("The Red Kettle.", ["red kettle"]),
    "article in the middle": ("king of the hill", ["king of hill"]),
    "article as part of a word": ("theatre", ["atre"]),
    "article glued by punctuation": ("a-b", ["ab"]),
    "letter a as a name": ("vitamin A", ["vitamin"]),
    "part of it": ("the old harbour of Bergen", ["Bergen"]),
    "more than it": ("Bergen", ["the old harbour of Bergen", "harbour"]),
    "second reference is right": ("1912", ["in 1912", "1912", "the year 1912"]),
    "best exact and best F1 are of different references": (
        "north gate",
        ["the North Gate tower", "north gate"],
    ),
    "another answer": ("Oslo", ["Bergen", "harbour"]),
    "a word twice": ("no no no", ["no no"]),
    "a word twice in the reference": ("no", ["no no"]),
    "other order": ("gate north", ["north gate"]),
    "empty answer": ("", ["Bergen"]),
    "spaces alone": (" \t\n", ["Bergen"]),
    "articles alone": ("the", ["Bergen"]),
    "articles alone, as the reference": ("The", ["the"]),
    "empty answer to articles alone": ("", ["A", "an"]),
    "empty reference": ("Bergen", [""]),
    "punctuation alone": ("...", ["Bergen"]),
    "abbreviation": ("U.S.", ["US"]),
    "apostrophe": ("Levi's", ["Levis", "Levi s"]),
    "currency and comma": ("$1,200", ["1200"]),
    "dash that is not ASCII": ("24–10", ["2410", "24-10"]),
    "quotes that are not ASCII": ("“gold”", ["gold"]),
    "accents": ("Beyoncé", ["Beyonce", "Beyoncé"]),
    "Chinese": ("西藏 自治区", ["西藏自治区", "西藏 自治区"]),
    "Greek capitals": ("ΣΊΣΥΦΟΣ", ["σίσυφος"]),
    "Turkish dotted I": ("İzmir", ["izmir"]),
    "Arabic, partly": ("مدينة القاهرة", ["القاهرة"]),
    "no-break space": ("red\u00a0kettle", ["red kettle"]),
    "article before a letter that is not ASCII": ("the été", ["été"]),
}


def main():
    script = Path(sys.argv[1])
    spec = importlib.util.spec_from_file_location("official", script)
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)

    def scored(names):
        questions = [{"id": name, "answers": [{"text": text} for text in CASES[name][1]]} for name in names]
        return official.evaluate(
            [{"paragraphs": [{"qas": questions}]}], {name: CASES[name][0] for name in names}
        )

    cases = [
        {"name": name, "answer": answer, "references": refs, "scores": scored([name])}
        for name, (answer, refs) in CASES.items()
    ]
    out = {
        "script": {"sha256": hashlib.sha256(script.read_bytes()).hexdigest()},
        "all": scored(CASES),
        "cases": cases,
    }
    text = json.dumps(out, ensure_ascii=False).replace('{"name"', '\n{"name"') + "\n"  # a case a line
    Path(__file__).with_name("squad_scores.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
