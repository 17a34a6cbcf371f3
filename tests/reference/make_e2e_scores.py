"""Writes e2e_scores.json: sentences with CoreNLP 3.4.1's tokens, small corpora with the official scores.

The sentences and corpora are our own.

    pip install pycocoevalcap        # PTBTokenizer, METEOR, ROUGE-L and CIDEr; the first two also need java
    python tests/reference/make_e2e_scores.py DIR

DIR is a checkout of github.com/tuetschek/e2e-metrics. Its metrics/pymteval.py, for BLEU and NIST, needs
`pip install future`.
"""

import json
import sys
from pathlib import Path

from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

sys.path.insert(0, sys.argv[1])
from metrics.pymteval import BLEUScore, NISTScore

SENTENCES = """
The Teapot's a family-friendly pub; it isn't cheap, but it's near the river.
They can't, won't and shouldn't've. You'd say we'll, I'm, they're, who've. CAN'T! IT'S! THEY'RE, YOU'LL!
It’s the kids’ menu, don’t you think? It`s don`t, it´s, they’ll.
I cannot say; I'm gonna, I wanna, you've gotta, lemme, gimme. 'Tis so, and 'twas.
'Quoted' and "quoted" and “quoted” and ‘quoted’ and ``quoted'' and 'so-called'.
Tell the ’nice and ’more of it, “‘tea’”, cont'd, nor'easter, s'mores.
Give 'em rock 'n' roll 'til ten o'clock, y'all, c'mon, ma'am: fish'n'chips, ol' chap, li'l e'er.
The '90s, the 1990's, in '05 and the '60s' best.
O'Hara's d'Artois d'25 Café.It5-star l'Orange, Ba'ath and B'Day and T'ien, aa'bb.
Meals cost £20-25, £20 - £25, €30, $5.50, US$7, less than £20, 5p, 50¢ or 5%.
A price range of £20-£25.It has 3.5 out of 5 stars,and 1,000,000 guests;1/2 off, 1 1/2 miles, ½ or 2½.
Dates 12/25/2010, 25-12-10, 2010-12-25, 6/7-13/14, 24/7, 10:30, 10:30am, 5 p.m. and 7.30pm; \
+5, -5, 5th, .5 and 5.
Call 555-1234, (555) 555-1234, 01223 323737 or 555.123.4567.
Mr. Smith, Dr. Jones, St. Ives, the U.S. and the U.K., e.g. at 5 a.m., etc. Jan. 5, No. 5, no. five, \
Fig. 3, p. 7.
Snacks Inc. serves tea. Snacks Ltd. The end. The pub, Inc., is Foo.Bar and Ltd.a or Ltd.ab; D-N.Y. too, \
pots., cups.;
Vitamin D. The sun. J. Smith has plan B. It works, says J. Theodor.
I was ill. It was mass. The Ill. voters and Mass. voters.
A café-bar, naïve crêpes, Ünder ñandú, 日本 and ру́сский; co‑op and soft­hyphen.
A well-known 5-star 3-course pub--or bar---with food – fine food — and a-b -- kid - friendly, 20-.
French,family-friendly food, low-priced,cheap; 2.5-mile walk, 1,700-square-mile area, U.S.-led, \
Ltd.-owned, eu-u.s. x.
and/or he/she/it high/low-priced a-1/b w/o 5/bar bar/5 one/two/three/four
Wait... what? No!! Yes?! well…ok . . . so.. end.... only ...5 or food--5 pub.It yes!no
(good) [better] {best} <b>bold</b> <br/> a < b > c << d >>
See http://teapot.example/menu?x=1, www.teapot.co.uk, teapot.com/menu, tea@pot.co.uk, <a.b@c>, \
@teapot #tea, tea.com's.
AT&T's B&B, R&B, fish & chips, fish &amp; chips, B&amp;B, A&b, Q+A, &lt;tea&gt;, &quot;tea&quot;.
C++ and C# and F#; anti- and pro- and pre- tests; a_b __ * ** \\* ~ ^ | \\ = + @@ ## #5.
Nice :) :-( ;) =D :Dx foo:Does rating:5
Tea 🍵 for two™ at 20°C, © 2010, § 5, † x × y ÷ z ₮.
 Two  spaces	and a tab and a no-break space.
""".strip("\n").split("\n")

CORPORA = {
    "good and bad": {
        "The Teapot is a cheap pub near the river.": [
            "The Teapot is a cheap pub by the river.",
            "Near the river there is a cheap pub called The Teapot.",
            "There's a cheap, family-friendly pub, The Teapot, near the river.",
        ],
        "The Copper Pan serves French food in the city centre. It isn't family-friendly.": [
            "The Copper Pan isn't family-friendly. It serves French food in the centre of the city."
        ],
        "Blue Door has a rating of 5 out of 5 and costs £20-25.": [
            "Blue Door costs £20-25 and has a customer rating of 5 out of 5.",
            "With a 5 out of 5 rating, the Blue Door costs £20 - £25!",
        ],
        "pub pub pub pub near near": ["A pub near the river.", "The pub is near a pub."],
        "Olive Yard is a restaurants that serve Indian dishes (1,000 of them) at moderate prices.": [
            "Olive Yard is a restaurant; it serves some Indian dishes at a moderate price.",
            "Olive Yard serves Indian food. Its prices are moderate.",
            "Indian food, moderately priced: Olive Yard.",
            "The Olive Yard's Indian food &amp; drink is moderately priced.",
        ],
        "The Teapot is a cheap pub next to the river": ["The Teapot is a cheap pub by the river."],
    },
    "short and empty": {
        "": ["Nothing to say here.", "There is nothing."],
        "Cheap.": ["Cheap!", "It is cheap."],
        "The Teapot": ["The Teapot is a pub."],
        "A pub near the river": ["A pub near the river", "A pub near the long river"],
    },
    "nothing in common": {
        "Fast food by the old harbour": ["Cheap pubs near many rivers", "No!"],
        "Tea at seven": ["Coffee before nine o'clock"],
    },
    "one": {"The Teapot is a very cheap pub.": ["The Teapot is a cheap pub.", "The Teapot is very cheap."]},
}


def ptb(groups: list[list[str]]) -> list[list[str]]:
    tokens = PTBTokenizer().tokenize(
        {i: [{"caption": text} for text in group] for i, group in enumerate(groups)}
    )
    return [tokens[i] for i in range(len(groups))]


corpora = []
for name, corpus in CORPORA.items():
    outputs, references = list(corpus), list(corpus.values())
    bleu, nist = BLEUScore(), NISTScore()
    for output, refs in corpus.items():
        bleu.append(output, refs)
        nist.append(output, refs)
    # an empty line at the start of a file would be lost, so both kinds are tokenised apart, after a word
    sys_tokens = dict(enumerate([text] for text in ptb([["x", *outputs]])[0][1:]))
    ref_tokens = dict(enumerate(ptb(references)))
    scores = {"BLEU": bleu.score(), "NIST": nist.score()}
    for key, scorer in ("METEOR", Meteor()), ("ROUGE-L", Rouge()), ("CIDEr", Cider()):
        scores[key] = float(scorer.compute_score(ref_tokens, sys_tokens)[0])
    corpora.append({"name": name, "outputs": outputs, "references": references, "scores": scores})

result = {"ptb": list(zip(SENTENCES, ptb([SENTENCES])[0], strict=True)), "corpora": corpora}
text = json.dumps(result, ensure_ascii=False).replace('["', '\n["').replace('{"name"', '\n{"name"') + "\n"
Path(__file__).with_name("e2e_scores.json").write_text(text, encoding="utf-8")
