"""Made-up data-to-text: things with slots and values, and sentences that describe them.

A domain is a table. Each line says how to express some values of a slot: before the noun ("a cheap pub"),
after it ("a pub near The Mill"), or as a predicate ("It has low prices"). `describe` assigns the slots to
these places, chooses a sentence plan, and joins the remaining predicates with "and" and pronouns.

`RESTAURANT` has the slots of the official E2E files and makes the bundled ones. The decoder is pretrained on
`OTHERS`, which have no restaurants.
"""

from typing import NamedTuple

from data.e2e import RENAMED, tokenised


class Words(NamedTuple):
    """The ways to express any of `values` in each place. An empty list means that there is none."""

    values: list
    before: list
    after: list
    says: list


class Domain(NamedTuple):
    kind: str  # the slot that holds the noun
    pronoun: str
    unnamed: str  # the noun without that slot
    slots: dict  # slot -> [Words, …]; the name and the kind come first


def read_table(table, pronoun="it", unnamed="place"):
    slots = {}
    for line in table.strip().splitlines():
        slot, values, *places = [cell.strip() for cell in line.split("|")]
        slot = slot or list(slots)[-1]
        ways = [place.split(" / ") if place else [] for place in [*places, "", "", ""][:3]]
        slots.setdefault(slot, []).append(Words(values.split(", "), *ways))
    return Domain(list(slots)[1], pronoun, unnamed, slots)


# --- tables -----------------------------------------------------------------------------------------------

# The columns are slot | values | before the noun | after the noun | predicate. A line without a slot belongs
# to the slot above. {} is the value; <venue>, <place>, <person> and <title> are invented names.
RESTAURANT = read_table("""
name | <venue>
eatType | pub, restaurant, coffee shop, bistro
food | Italian, French, Indian, Chinese, Japanese, Spanish, Greek, Turkish | {} \
        | with {} food / serving {} food | serves {} food / offers {} dishes / has {} food on the menu
priceRange | cheap | cheap / low priced | with low prices | is cheap / has low prices
    | moderate | moderately priced | with moderate prices | is moderately priced / has moderate prices
    | high | expensive / high priced | with high prices | is expensive / has high prices
    | less than £20, £20-25, more than £30 | | with prices of {} | has prices of {} / charges {}
customer rating | low | poorly rated | with a low rating \
        | has a low customer rating / is rated low by customers
    | average | | with an average rating | has an average customer rating / is rated average by customers
    | high | highly rated | with a high rating | has a high customer rating / is rated highly by customers
    | 1 out of 5, 3 out of 5, 5 out of 5 | | rated {} | has a customer rating of {} / is rated {} by customers
area | riverside | riverside | by the river | is by the river / is in the riverside area
    | city centre | | in the city centre | is in the city centre / can be found in the centre of the city
familyFriendly | yes | family friendly | for families \
        | welcomes children / is family friendly / is good for children
    | no | | for adults only | does not welcome children / is not family friendly / is not for children
near | <venue> | | near {} / close to {} | is near {} / is located close to {} / can be found near {}
""")

HOTEL = read_table(
    """
name | <venue>
kind | hotel, guest house, hostel, inn
rooms | few, many, 12, 40, 95 | | with {} rooms | has {} rooms / offers {} rooms
stars | 2, 3, 4, 5 | {} star | rated {} out of 5 | has {} stars / is rated {} out of 5 by guests
cost | low | cheap / inexpensive | with low prices | is cheap / has low prices
    | average | moderately priced | with average prices | is moderately priced / has average prices
    | high | expensive | with high prices | is expensive / charges high prices
    | £40-60, less than £50, more than £90 | | with prices of {} | charges {} / has prices of {}
breakfast | yes | | with breakfast | serves breakfast / has breakfast on the menu
    | no | | without breakfast | does not serve breakfast
pets | yes | pet friendly | for people with dogs | welcomes dogs / is good for dogs
    | no | | without pets | does not welcome dogs / is not for pets
close to | <venue> | | near {} / close to {} | is near {} / is located close to {}
""",
    unnamed="house",
)

MUSEUM = read_table("""
name | <venue>
Type | museum, gallery, exhibition
theme | Roman, Greek, modern, Spanish, Egyptian, French, medieval, Indian | {} \
        | of {} art / showing {} art | shows {} art / offers {} works / is known for {} art
entry | free | free | with free entry | is free / charges nothing
    | £5, £12, less than £10 | | with tickets of {} | charges {} / sells tickets for {}
quarter | old town | old town | in the old town | is in the old town / can be found in the old town
    | harbour | harbour | by the harbour | is by the harbour / stands at the harbour
    | city centre | | in the centre of the city | is in the city centre / can be found in the city centre
children | welcome | child friendly | for children | welcomes children / is good for families
    | not allowed | | for adults only | does not welcome children / is not for children
visitors | few, many | | with {} visitors | has {} visitors / is visited by {} people
""")

FILM = read_table(
    """
name | <title>
genre | comedy, drama, thriller, western, musical
country | Italian, French, Indian, Japanese, Danish, Polish | {} | | is {}
director | <person> | | by {} | was directed by {} / is the work of {}
length | short, long | {} | | is {}
    | 90 minutes, 2 hours, 3 hours | | of {} | lasts {} / takes {}
reviews | poor | poorly rated | with a low rating | is rated low by critics / has poor reviews
    | mixed | | with an average rating | has mixed reviews / is rated average by critics
    | good | highly rated | with a high rating | is rated highly by critics / has good reviews
suitable for children | yes | family | for families | is good for children / is suitable for children
    | no | | for adults only | is not good for children / is not for children
""",
    unnamed="film",
)

BOOK = read_table(
    """
name | <title>
genre | novel, biography, cook book, travel guide
author | <person> | | by {} | was written by {} / is the work of {}
pages | 80, 250, 400, 900 | | of {} pages | has {} pages
language | Italian, German, Spanish, Turkish, Chinese | {} | in {} | is written in {} / was printed in {}
price | low | cheap | at a low price | is cheap / costs little
    | high | expensive | at a high price | is expensive / costs much
    | £8, £15, less than £20 | | for {} | costs {} / is sold for {}
prize | yes | famous | with a prize | won a prize
    | no | little known | | has not won a prize
""",
    unnamed="book",
)

TRAIN = read_table(
    """
name | <venue>
service | express, night train, tram, ferry
to | <place> | | to {} | goes to {} / ends at {}
from | <place> | | from {} | starts at {} / comes from {}
speed | slow, fast | {} | | is {}
fare | low | cheap / inexpensive | with low fares | is cheap / has low fares
    | high | expensive | with high fares | is expensive / has high fares
    | £10-15, less than £30, more than £45 | | with fares of {} | charges {} / has fares of {}
food on board | yes | | with food / serving food | serves food / offers meals / has food on board
    | no | | without food | does not serve food / offers no meals
""",
    unnamed="train",
)

PERSON = read_table(
    """
name | <person>
job | doctor, teacher, painter, pilot, singer, lawyer
nation | Italian, French, Indian, Greek, Swedish, Turkish | {} | | is {}
age | young, old | {} | | is {}
    | 25, 40, 63 | {} year old | aged {} | is {} years old
home | <place> | | from {} / living in {} | lives in {} / comes from {}
likes | chess, football, music, dogs, tea | | with a love of {} | likes {} / is fond of {}
children | yes | | with children | has children
    | no | | without children | does not have children / has no children
""",
    pronoun="she",
    unnamed="person",
)

PARK = read_table("""
name | <venue>
Type | park, garden, playground, nature reserve
size | small, large, huge | {} | | is {}
location | north | northern | in the north | is in the northern part of the city
    | south | southern | in the south | can be found in the southern part of the city
    | river | riverside | by the river | is by the river / can be found at the riverside
rating | low | | rated low | is rated low by visitors / has a low rating
    | high | popular | rated highly | is rated highly by visitors / has a high rating
    | 2 out of 5, 4 out of 5 | | rated {} | has a rating of {} / is rated {} by visitors
for families | yes | family friendly | for families | is good for families / welcomes children
    | no | | for adults only | is not family friendly / is not for families
beside | <venue> | | near {} / next to {} | is near {} / can be found near {}
""")

SHOP = read_table(
    """
name | <venue>
trade | book shop, bakery, toy shop, tea shop, market
goods | old, new, Indian, English, Japanese | | with {} goods / selling {} goods \
        | sells {} goods / offers {} goods
prices | low | cheap / low priced | with low prices | has low prices / is cheap
    | fair | moderately priced | with fair prices | has fair prices / is moderately priced
    | high | expensive / high priced | with high prices | has high prices / is expensive
open | daily | | open every day | is open every day / does not close
    | weekdays | | open on weekdays | is not open on Sundays / opens on weekdays
service | friendly | friendly | with friendly service | is known for friendly service
    | slow | | with slow service | is known for slow service
next to | <venue> | | next to {} / close to {} | is next to {} / is close to {}
""",
    unnamed="shop",
)

OTHERS = [HOTEL, MUSEUM, FILM, BOOK, TRAIN, PERSON, PARK, SHOP]

COLOURS = "Amber Black Blue Brown Copper Crimson Golden Green Grey Ivory Old Purple Red Silver White Yellow"
EMBLEMS = (
    "Anchor Badger Barrel Bell Bridge Candle Crown Dolphin Falcon Feather Fiddle Fox Hare Harp Heron Horn "
    "Kettle Key Lantern Lion Maple Mill Oak Otter Owl Parrot Pear Pilot Plough Raven Rose Sparrow Star Swan "
    "Thistle Tower Wheel"
)
FIRST = (
    "Ada Boris Cora Dmitri Elsa Fergus Greta Hugo Iris Jonas Kira Leon Mira Nils Otto Petra Rolf Sonja Tilda "
    "Viktor"
)
STARTS = "Al Bar Cor Dal El Far Gol Hal Ister Jor Kel Lor Mar Nor Or Pel Quin Ros Sal Tor Ul Ver Wil Yar Zel"
MIDDLES = "a an be do e en i in lo mi o ra se ti u va"
ONSETS = "b bl br c ch cl d dr f fl g gl h j k l m n p pl pr qu r s sh sk sl sp st t tr v w z"
VOWELS = "a ai e ea ee i o oo ou u"
CODAS = "b ck d f ff g l ll m n nd nt p r rt s sh st t th v"
ENDS = "berg bury by dale den ford gate ham holm ia ley low mere mond mouth ness ra stead ton vale well wick"


# --- from slots to sentences ------------------------------------------------------------------------------


def invent(rng, kind):
    """A name, such as "The Golden Heron", "Istermond", "Greta Corwick", "The Raven of Talford"."""
    place = "".join(rng.choice(part.split()) for part in (STARTS, MIDDLES, ENDS))
    emblem = rng.choice(EMBLEMS.split())
    coloured = f"{rng.choice(COLOURS.split())} {emblem}"
    names = {
        "<place>": [place],
        "<person>": [f"{rng.choice(FIRST.split())} {place}"],
        "<venue>": [place, coloured, f"The {coloured}", f"The {emblem}"],
        "<title>": [place, f"The {coloured}", f"The {emblem} of {place}"],
    }
    return rng.choice(names[kind])


def coin(rng):
    """A new word, such as "plontumb" or "Gaskiv"."""
    word = "".join(rng.choice(part.split()) for part in (ONSETS, VOWELS, CODAS) * 2)
    return rng.choice([word, word, word.capitalize()])


def represent(rng, domain, share=0.6, coined=0.0):
    """A meaning representation {slot: value} in the table's order: a name, mostly a kind, and more.

    A value that sentences quote is a new word with probability `coined`.
    """
    while True:
        facts = {}
        for slot, rows in domain.slots.items():
            if rng.random() < {"name": 1.0, domain.kind: 0.85}.get(slot, share):
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
    """Whether all ways to express the row's values quote them, so that other words can take their place."""
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
    """name : The Mill | Type : pub | price : £ 20 - 25, as `data.e2e.read` returns it"""
    return " | ".join(f"{RENAMED.get(slot, slot)} : {tokenised(value)}" for slot, value in facts.items())


def bracketed(facts):
    """name[The Mill], eatType[pub], priceRange[cheap], as in the official E2E files"""
    return ", ".join(f"{slot}[{value}]" for slot, value in facts.items())
