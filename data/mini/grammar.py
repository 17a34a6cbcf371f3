"""A small grammar of English that draws pairs of sentences: an acceptable one, and the same one spoilt.

Every phenomenon is a function that takes a `random.Random` and returns two lists of words, (good, bad). They
differ only in one word or in the place of one constituent. So neither length nor vocabulary tells them apart:
a model has to relate words to each other, often across distracting ones ("The boys near the king is asleep").

The lexicon has no words that would make a "bad" sentence good: verbs whose object is optional (eat, smile),
nouns and verbs with ambiguous forms (sheep, put, find and found), verbs that are also adjectives (faint).
Reflexives never refer to people of unknown gender.
"""

from pathlib import Path

# ---- lexicon

LISTS = Path(__file__).with_name("grammar.txt").read_text(encoding="utf-8").splitlines()
(
    MEN, WOMEN, ANYONE, HIS_NAMES, HER_NAMES, THINGS, PLACES, ADJECTIVES, THING_ADJECTIVES, STATES,
    PREPOSITIONS, SINGULAR_DETERMINERS, PLURAL_DETERMINERS, INTRANSITIVE, WITH_PERSON, WITH_THING,
    REFLEXIVE, SAYING, KNOWING, MODALS, *IRREGULAR,
) = (line.split(" = ")[1].split() for line in LISTS if " = " in line)  # fmt: skip
IRREGULAR_PLURALS, IRREGULAR_VERBS, DOUBLED = (
    {word: forms for word, *forms in (entry.split("/") for entry in words)} for words in IRREGULAR
)
PLURAL, SINGULAR = True, False  # the wrong number is `not number`


def plural_of(noun):
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun][0]
    if noun[-1] == "y" and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def form(verb, which):
    """The form "base", "s" (third person), "past", "part" (after have) or "ing" of a verb."""
    (stem,) = DOUBLED.get(verb, [verb.removesuffix("e")])
    if which == "base":
        return verb
    if which == "s":
        return plural_of(verb)  # English spells both endings alike
    if which == "ing":
        return stem + "ing"
    if verb in IRREGULAR_VERBS:
        return IRREGULAR_VERBS[verb][which == "part"]
    return verb[:-1] + "ied" if verb[-1] == "y" and verb[-2] not in "aeiou" else stem + "ed"


# ---- phrases, as lists of words


def noun_phrase(rng, nouns, number, adjectives=ADJECTIVES, determiner=None, adjective_share=0.3):
    """For example ["the", "tall", "boys"]."""
    noun = rng.choice(nouns)
    noun = plural_of(noun) if number == PLURAL else noun
    words = [rng.choice(adjectives), noun] if rng.random() < adjective_share else [noun]
    determiner = determiner or rng.choice(PLURAL_DETERMINERS if number == PLURAL else SINGULAR_DETERMINERS)
    return [article(determiner, words[0]), *words]


def article(determiner, next_word):
    return "an" if determiner == "a" and next_word[0] in "aeiou" else determiner


def any_number(rng):
    return rng.random() < 0.5


def person(rng, number=None, names=True):
    """A noun phrase or, in the singular, sometimes a name."""
    number = any_number(rng) if number is None else number
    if names and number == SINGULAR and rng.random() < 0.25:
        return [rng.choice(HIS_NAMES + HER_NAMES)]
    return noun_phrase(rng, MEN + WOMEN + ANYONE, number)


def thing(rng, number=None):
    return noun_phrase(rng, THINGS, any_number(rng) if number is None else number, THING_ADJECTIVES)


def verb_and_object(rng):
    if rng.random() < 0.5:
        return rng.choice(WITH_PERSON), person(rng)
    return rng.choice(WITH_THING), thing(rng)


def verb_phrase(rng):
    """A verb and its object, which may be empty."""
    return (rng.choice(INTRANSITIVE), []) if rng.random() < 0.4 else verb_and_object(rng)


def finite(rng, number):
    """A predicate, and the same one with the wrong number in its first word."""
    verb, rest = verb_phrase(rng)
    kind = rng.choice(["verb", "verb", "be", "progressive", "perfect", "negated"])
    if kind == "verb":
        forms = form(verb, "s"), verb
    elif kind == "be":
        forms, rest = rng.choice([("is", "are"), ("was", "were")]), [rng.choice(STATES)]
    elif kind == "progressive":
        forms, rest = rng.choice([("is", "are"), ("was", "were")]), [form(verb, "ing"), *rest]
    elif kind == "perfect":
        forms, rest = ("has", "have"), [form(verb, "part"), *rest]
    else:
        forms, rest = ("does", "do"), ["not", verb, *rest]
    return [forms[number], *rest], [forms[not number], *rest]


def setting(rng):
    """["in", "the", "garden"], or mostly []."""
    return ["in", "the", rng.choice(PLACES)] if rng.random() < 0.25 else []


def past(rng, verbs):
    return form(rng.choice(verbs), "past")


def in_context(rng, before, good, bad, after=()):
    """The pair between `before` and `after`, sometimes in a place or reported by someone."""
    after = [*after, *setting(rng)]
    if rng.random() < 0.3:
        before = [*person(rng), past(rng, SAYING), "that", *before]
    return [*before, *good, *after], [*before, *bad, *after]


def who_or_what(verb):
    return "who" if verb in WITH_PERSON else "what"


# ---- phenomena, which return (good, bad)


def agreement(rng):
    """The boys laugh / *laughs; Does the boy laugh / *Do the boy laugh"""
    number = any_number(rng)
    if rng.random() < 0.25:
        verb, rest = verb_phrase(rng)
        rest = [*person(rng, number), verb, *rest, *setting(rng), "?"]
        forms = ("does", "do")
        return [forms[number], *rest], [forms[not number], *rest]
    good, bad = finite(rng, number)
    subject = person(rng, number)
    return in_context(rng, subject, good, bad)


def agreement_across_phrase(rng):
    """The boys near the king laugh / *laughs"""
    number = any_number(rng)
    attractor = rng.choice([person, thing])(rng, not number if rng.random() < 0.8 else number)
    subject = [*person(rng, number, names=False), rng.choice(PREPOSITIONS), *attractor]
    good, bad = finite(rng, number)
    return in_context(rng, subject, good, bad)


def agreement_across_clause(rng):
    """The boys that the king admires laugh / *laughs; The king that admires / *admire the boys laughs"""
    number = any_number(rng)
    head = [*person(rng, number, names=False), "that"]
    other = person(rng, not number if rng.random() < 0.8 else number)
    verb = rng.choice(WITH_PERSON)
    predicate, wrong = finite(rng, number)
    if rng.random() < 0.5:
        subject = [*head, *other, form(verb, "past")]
        return in_context(rng, subject, predicate, wrong)
    forms, rest = (form(verb, "s"), verb), [*other, *predicate]
    return in_context(rng, head, [forms[number]], [forms[not number]], rest)


def reflexive(rng):
    """The king admired himself / *themselves; The boys near the king admired themselves / *himself"""
    masculine, number = rng.random() < 0.5, any_number(rng)
    own, opposite = ("himself", "herself") if masculine else ("herself", "himself")
    if number == PLURAL:
        own, wrong = "themselves", own
    else:
        wrong = rng.choice([opposite, "themselves"])
    subject = noun_phrase(rng, MEN if masculine else WOMEN, number)
    if number == SINGULAR and rng.random() < 0.25:
        subject = [rng.choice(HIS_NAMES if masculine else HER_NAMES)]
    elif rng.random() < 0.4:  # someone nearby whom the wrong pronoun would suit
        nearby = MEN if wrong == "himself" else WOMEN if wrong == "herself" else MEN + WOMEN
        subject = [*subject, rng.choice(PREPOSITIONS), *noun_phrase(rng, nearby, wrong == "themselves")]
    clause = [*subject, past(rng, REFLEXIVE)]
    return in_context(rng, clause, [own], [wrong])


def argument_structure(rng):
    """The boy praised / *laughed the king; The boy laughed / *praised in the garden"""
    subject = person(rng)
    verb, rest = verb_and_object(rng)
    tenses = [([], "past"), ([rng.choice(MODALS)], "base"), (["had"], "part"), (["did", "not"], "base")]
    auxiliaries, which = rng.choice(tenses)
    with_object = [*subject, *auxiliaries, form(verb, which)]
    without = [*subject, *auxiliaries, form(rng.choice(INTRANSITIVE), which)]
    if rng.random() < 0.5:
        return in_context(rng, [], with_object, without, rest)
    return in_context(rng, [], without, with_object)


def wh_question(rng):
    """What / *When did the boy carry?; When / *What did the boy carry the box?"""
    verb, rest = verb_and_object(rng)
    what, when = who_or_what(verb), rng.choice(["when", "where", "why"])
    auxiliary, which = rng.choice([("did", "base"), (rng.choice(MODALS), "base"), ("had", "part")])
    through = [*person(rng), "say", "that"] if auxiliary == "did" and rng.random() < 0.3 else []
    clause = [auxiliary, *through, *person(rng), form(verb, "past" if through else which)]
    if rng.random() < 0.5:
        return [what, *clause, "?"], [when, *clause, "?"]
    return [when, *clause, *rest, "?"], [what, *clause, *rest, "?"]


def wh_clause(rng):
    """Alice knew what / *that the boy carried; Alice knew that / *what the boy carried the box"""
    verb, rest = verb_and_object(rng)
    what, plain = who_or_what(verb), rng.choice(["that", "that", "when", "why"])
    before, clause = [*person(rng), past(rng, KNOWING)], [*person(rng), form(verb, "past")]
    if rng.random() < 0.5:
        return [*before, what, *clause], [*before, plain, *clause]
    return [*before, plain, *clause, *rest], [*before, what, *clause, *rest]


def word_order(rng):
    """*Boy the laughed; *the boy tall laughed; *the boy the box carried; *What the boy did carry?"""
    verb, rest = verb_and_object(rng)
    kind = rng.choice(["determiner", "adjective", "object", "inversion"])
    if kind == "inversion":
        what, subject, auxiliary = who_or_what(verb), person(rng), rng.choice(["did", *MODALS])
        return [what, auxiliary, *subject, verb, "?"], [what, *subject, auxiliary, verb, "?"]
    number = any_number(rng)
    determiner = rng.choice(["the", "these" if number == PLURAL else "this"])
    share = float(kind == "adjective")
    subject = noun_phrase(rng, MEN + WOMEN + ANYONE, number, determiner=determiner, adjective_share=share)
    done = [form(verb, "past")]
    if kind == "object":
        return in_context(rng, subject, [*done, *rest], [*rest, *done])
    swapped = [*subject[:-2], subject[-1], subject[-2]]  # the noun before its adjective or determiner
    return in_context(rng, [], subject, swapped, [*done, *rest])


def determiner(rng):
    """These boys / *boy laughed; Every / *many boy laughed; Alice carried two boxes / *box"""
    number, is_person = any_number(rng), rng.random() < 0.6
    nouns, adjectives = (MEN + WOMEN + ANYONE, ADJECTIVES) if is_person else (THINGS, THING_ADJECTIVES)
    choices = (SINGULAR_DETERMINERS[1:], PLURAL_DETERMINERS[1:])  # "the" goes with both
    good = noun_phrase(rng, nouns, number, adjectives, determiner=rng.choice(choices[number]))
    if rng.random() < 0.5:
        bad = [article(rng.choice(choices[not number]), good[1]), *good[1:]]
    else:
        noun = next(noun for noun in nouns if good[-1] in (noun, plural_of(noun)))
        bad = [*good[:-1], noun if number == PLURAL else plural_of(noun)]
    if is_person and rng.random() < 0.5:
        verb, rest = verb_phrase(rng)
        return in_context(rng, [], good, bad, [form(verb, "past"), *rest])
    before = [*person(rng), past(rng, WITH_PERSON if is_person else WITH_THING)]
    return in_context(rng, before, good, bad)


def auxiliary(rng):
    """The boy has / *will praised the king; will praise / *praised; wanted to laugh / *laughing"""
    verb, rest = verb_phrase(rng)
    number = any_number(rng)
    subject = person(rng, number)
    before = {"base": rng.choice(MODALS), "part": ("has", "have")[number], "ing": ("is", "are")[number]}
    # "is praised" would be a passive, so a participle and "be" never meet
    right, wrong = rng.choice([("base", "part"), ("base", "ing"), ("part", "base"), ("ing", "base")])
    if rng.random() < 0.4:
        good, bad = [before[right], form(verb, right)], [before[wrong], form(verb, right)]
    else:
        opener = [before[right]]
        if right == "base":
            opener = rng.choice([opener, ["did", "not"], [rng.choice(["wanted", "refused", "hoped"]), "to"]])
        good, bad = [*opener, form(verb, right)], [*opener, form(verb, wrong)]
    return in_context(rng, subject, good, bad, rest)


PHENOMENA = {
    "agreement": agreement,
    "agreement-phrase": agreement_across_phrase,
    "agreement-clause": agreement_across_clause,
    "reflexive": reflexive,
    "argument": argument_structure,
    "wh-question": wh_question,
    "wh-clause": wh_clause,
    "order": word_order,
    "determiner": determiner,
    "auxiliary": auxiliary,
}


def spell(words):
    """['the', 'boy', 'laughs'] -> 'The boy laughs.'"""
    words = words if words[-1] == "?" else [*words, "."]
    text = " ".join(words[:-1]) + words[-1]
    return text[0].upper() + text[1:]


def draw(rng, phenomenon):
    """(acceptable, unacceptable), as text."""
    good, bad = PHENOMENA[phenomenon](rng)
    return spell(good), spell(bad)
