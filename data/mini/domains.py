"""Made-up data-to-text: things with slots and values, and sentences that describe them.

A domain is a table. Each line says how to express some values of a slot: before the noun ("a cheap pub"),
after it ("a pub near The Mill"), or as a predicate ("It has low prices"). `RESTAURANT` has the slots of the
official E2E files and makes the bundled ones. The decoder is pretrained on `OTHERS`.
"""

from pathlib import Path
from typing import NamedTuple

from data.e2e import RENAMED, tokenised


class Words(NamedTuple):
    """The ways to express any of `values` in each place."""

    values: list
    before: list
    after: list
    says: list


class Domain(NamedTuple):
    kind: str  # the slot that holds the noun
    pronoun: str
    unnamed: str  # the noun without that slot
    slots: dict  # slot -> [Words, …]; the name and the kind come first


def read_file(path):
    """(the Domains, {kind: words}) of a file like domains.txt, which describes its form."""
    domains, words = {}, {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name, pronoun, unnamed = line.strip("[]").split(", ")
            slots = {}
        elif " = " in line:
            kind, listed = line.split(" = ")
            words[kind] = listed.split()
        elif line and not line.startswith("#"):
            slot, values, *places = [cell.strip() for cell in line.split("|")]
            slot = slot or list(slots)[-1]
            ways = [place.split(" / ") if place else [] for place in [*places, "", "", ""][:3]]
            slots.setdefault(slot, []).append(Words(values.split(", "), *ways))
            domains[name] = Domain(list(slots)[:2][-1], pronoun, unnamed, slots)
    return [*domains.values()], words


(RESTAURANT, *OTHERS), WORDS = read_file(Path(__file__).with_name("domains.txt"))

# ---- from slots to sentences


def invent(rng, kind):
    """A name, such as "The Golden Heron", "Istermond", "Greta Corwick", "The Raven of Talford"."""
    place = "".join(rng.choice(WORDS[part]) for part in ("starts", "middles", "ends"))
    emblem = rng.choice(WORDS["emblems"])
    coloured = f"{rng.choice(WORDS['colours'])} {emblem}"
    names = {
        "<place>": [place],
        "<person>": [f"{rng.choice(WORDS['first'])} {place}"],
        "<venue>": [place, coloured, f"The {coloured}", f"The {emblem}"],
        "<title>": [place, f"The {coloured}", f"The {emblem} of {place}"],
    }
    return rng.choice(names[kind])


def coin(rng):
    """A new word, such as "plontumb" or "Gaskiv"."""
    word = "".join(rng.choice(WORDS[part]) for part in ("onsets", "vowels", "codas") * 2)
    return rng.choice([word, word, word.capitalize()])


def represent(rng, domain, coined=0.0):
    """A meaning representation {slot: value}; quoted values are new words with probability `coined`."""
    while True:
        facts = {}
        for slot, rows in domain.slots.items():
            if rng.random() < {"name": 1.0, domain.kind: 0.85}.get(slot, 0.6):
                row = rng.choice(rows)
                value = rng.choice(row.values)
                if value.startswith("<"):
                    value = invent(rng, value)
                elif coined and is_quoted(row) and rng.random() < coined:
                    value = coin(rng)
                facts[slot] = value
        if len(facts) >= 3:
            return facts


def is_quoted(row):
    """Whether all ways to express the row's values quote them, so that others can take their place."""
    return all("{}" in way for place in row[1:] for way in place)


def ways_to_say(domain, slot, value):
    rows = domain.slots[slot]
    known = [row for row in rows if value in row.values]
    return (known + [row for row in rows if is_quoted(row)])[0]


def describe(rng, domain, facts):
    """A few sentences, planned at random, that express all of `facts`."""
    facts = dict(facts)
    name, noun = facts.pop("name"), facts.pop(domain.kind, domain.unnamed)
    before, after, says = [], [], []
    for slot, value in sorted(facts.items(), key=lambda _: rng.random()):
        row = ways_to_say(domain, slot, value)
        places = [(row.before, before, 2), (row.after, after, 2), (row.says, says, len(facts))]
        ways, chosen, _ = rng.choice([place for place in places if place[0] and len(place[1]) < place[2]])
        chosen.append(rng.choice(ways).format(value))
    noun = " ".join([*before, noun, *after])
    noun = ("an " if noun[0].lower() in "aeiou" else "a ") + noun
    pronoun, who = domain.pronoun.capitalize(), "who" if domain.pronoun == "she" else "that"

    plans = ["{name} is {noun}.", "There is {noun} called {name}.", "{name} is the name of {noun}."]
    if says:
        plans += ["{name}, {noun}, {first}.", "{name} is {noun} {who} {first}.", "{noun}, {name} {first}."]
    plan = rng.choice(plans)
    first = says.pop(0) if "{first}" in plan else ""
    sentences = [plan.format(name=name, noun=noun, first=first, who=who)]
    while says:
        pair = [says.pop(0) for _ in range(min(len(says), rng.choice([1, 2, 2])))]
        subject = pronoun if len(sentences) < 3 else f"{pronoun} also"
        sentences.append(f"{subject} {' and '.join(pair)}.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def linearised(facts):
    """name : The Mill | Type : pub | price : £ 20 - 25"""
    return " | ".join(f"{RENAMED.get(slot, slot)} : {tokenised(value)}" for slot, value in facts.items())


def bracketed(facts):
    """name[The Mill], eatType[pub], priceRange[cheap], as in the official E2E files"""
    return ", ".join(f"{slot}[{value}]" for slot, value in facts.items())
