"""Penn Treebank tokens of an English sentence, on which METEOR, ROUGE-L and CIDEr are computed.

They are those of Stanford CoreNLP 3.4.1's PTBTokenizer (-preserveLines -lowerCase) without punctuation. The
patterns below reproduce its behaviour, which was found by running it. At each place the pattern that matches
farthest wins, or the earliest of several. The text that it looks ahead to counts for its length, but is not
part of the token.

    >>> words("It's a family-friendly pub near St. John's; they can't take cards (cash only), £20-25.")
    "it 's a family-friendly pub near st. john 's they ca n't take cards -lrb- cash only -rrb- # 20-25"

There is one difference. Where a line ends in a single letter and a full stop ("… 25 L."), the original reads
the next line's first word to decide whether the full stop belongs to the letter. Here it always does.
"""

import functools
import re

# Words hold no numerals other than decimal digits (², ½, ①) and no characters of the supplementary planes.
NUMERAL = "²³¹¼-¾⁰-₉⅐-ↈ①-⓿❶-➓\U00010000-\U0010ffff"
LETTER = rf"[^\W\d_{NUMERAL}]"
ALNUM = rf"(?:[^\W_{NUMERAL}]|[\u02c2-\u036f\xad\u2010\u2011])"  # with accents, soft and non-breaking hyphens
APOSTROPHE = "(?:['’]|&apos;)"
WORD = rf"{LETTER}{ALNUM}*(?:[.!?]{LETTER}{ALNUM}*)*"  # "pub.It" is one word
NAME = rf"(?:[dol]{APOSTROPHE}{ALNUM})?{ALNUM}+"  # O'Brien
HYPHENATED = rf"{NAME}(?:[-_]{NAME})*"
CONTRACTION = rf"{APOSTROPHE}(?:[msd]|re|ve|ll)"
NOT = "n['’‘`]t"
QUOTE = "[`‘’“”‚„‛‟«»‹›]"
NUMBER = r"(?:\d*(?:[.:,\xad٫٬]\d+)+|\d+)"
ACRONYM = r"[a-z](?:\.[a-z])+"

# These may end a sentence. A state that is also a word needs its capital: "Wash.", but "a car wash."
ABBREVIATION = (
    "ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|"
    "wisc?|wyo|"
    "(?-i:Az|Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash|AZ|ARK|DEL|ILL|LA|MASS|MISS|ORE|PA|TEX|WASH)|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|"
    r"inc|cos?|corp|pp?t[ye]s?|ltd|plc|bancorp|bhd|assn|univ|intl|sys|tel|est|ext|sq|jr|sr|bros|ed\.d|ph\.d|"
    "blvd|rd|rt|esq|bldg|etc|al|seq"
)
# These do not.
TITLE = (
    "mrs?|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|"
    "pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc|ph|"
    "mtg|dept|vs|alex|wm|jos|cie|cf|treas|invt|elec|natl|mfg"
)
NUMBERED = "ca|figs?|prop|nos?|art|op|pp"  # only a number follows these
# These words begin a sentence after a single letter and a full stop: "vitamin D. The", but "J. Theodor".
FIRST = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|"
    "Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|"
    "While|Yet|You"
)

# Each rule is a token's pattern, or that and the pattern of the text after it. Case matters only in (?-i:…).
RULES = [
    r"</?[a-z][\w:.-]*(?:\s+[a-z][\w:.-]*(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[\w.-]+))?)*\s*/?>"  # <b>
    r"|<[!?][a-z-][^<>]*>",
    ("can", "not"),
    ("gon|wan", "na"),
    ("got", "ta"),
    ("lem|gim", "me"),
    (f"{APOSTROPHE}t", "is|was"),
    ("[a-z]*?[a-mo-z]", NOT),  # is|n't
    NOT,
    (rf"(?:{ABBREVIATION})\.", r"[\s\S]?"),
    (WORD, CONTRACTION),  # it|'s
    (CONTRACTION, "(?![a-z])"),
    "’(?:[nmsd]|re|ve|ll)",  # ’ does not open a quotation, as ' may
    WORD,
    rf"[ldj]{APOSTROPHE}|(?:dunkin|ol){APOSTROPHE}",
    rf"{APOSTROPHE}(?:n{APOSTROPHE}|n(?=\s|$)|em|till?|cause|[2-9]0s)",
    rf"[eo]{APOSTROPHE}er|c{APOSTROPHE}mon|ev{APOSTROPHE}ry|li{APOSTROPHE}l|nat{APOSTROPHE}l|o{APOSTROPHE}o",
    rf"cont{APOSTROPHE}d\.?|nor{APOSTROPHE}easter|s{APOSTROPHE}mores",
    (f"y{APOSTROPHE}", LETTER),  # y'|all
    (rf"{APOSTROPHE}\d\d", r"\s|$"),  # '05
    r"https?://[^\s\"<>|()]+[^\s\"<>|().!?,-]",
    r"(?:www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-z]{2,4}|[a-z][a-z0-9]*(?:\.[a-z0-9]+)*\.(?:com|net|org|edu))"
    r"(?:/[^\s\"<>|()]+[^\s\"<>|().!?,-])?",
    r"<?[a-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",
    rf"@[a-z_]\w*|#{LETTER}+",
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",  # a date
    rf"[-+]?{NUMBER}",
    r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}|[¼-¾⅓-⅞]",  # 1 1/2
    rf"(?:{TITLE})\.",
    (rf"(?:{NUMBERED})\.", r"\s?\d"),
    rf"{ACRONYM}\.?|[a-z]\.",
    (LETTER, rf"\.\s+(?-i:{FIRST}|{FIRST.upper()})(?:\s|$)"),
    (rf"{WORD}\.|{HYPHENATED}\.", "[,;:]"),  # any word before a full stop and a comma
    r"(?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}",  # phone
    HYPHENATED,
    rf"(?-i:[A-HJ-XZn]){APOSTROPHE}{LETTER}{LETTER}+",
    rf"{LETTER}+[aeiouy]{APOSTROPHE}(?-i:[aeiouA-Z]){LETTER}*",  # Ba'ath
    rf"[a-z0-9][a-z0-9.,\xad]*(?:-(?:{ACRONYM}\.|[a-z0-9\xad]+))+",  # French,family-friendly; U.S.-led
    r"[a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}",  # and/or
    r"c\+\+|[cf]#",
    "(?:anti|pro)-",
    r"(?-i:[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",  # B&B
    r"\.{3,}|(?:\.[ \xa0]){2,}\.",
    r"-+",
    r"[?!]+",
    r"\*+|\\\*",
    r"_+|@+|#+|<<|>>",
    r"(?-i:[A-Z]*)\$",  # US$
    (r"[<>]?[:;=][-o*']?[()dpo\\{@|\[\]]", "[^a-z0-9]|$"),  # a smiley
    "&(?:amp|lt|gt|quot|nbsp);",
    f"''|{QUOTE}{{1,2}}",
    "[!-~¡-¬®-¿×÷–-‣…‰-※‾-⁂⁄₠₤€℀-\u2bff\u3001\u3002\uff01-\uff65]",  # other symbols
]
RULES = [(rule, "") if isinstance(rule, str) else rule for rule in RULES]
RULES = [re.compile(f"({token})(?:{ahead})", re.I) for token, ahead in RULES]
# No rule matches farther at these, ASCII words before a space, and full stops and commas before a word. They
# are most tokens, so matching them first triples the speed.
PLAIN = re.compile(r"(?!(?:can|gon|wan|got|lem|gim)(?:not|na|ta|me))[a-z]+(?=,?\s)|[.,](?=\s[a-z]|$)", re.I)

# The treebank's spelling. Words keep the apostrophe ’.
SPELLING = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    '"': "''", "“": "``", "”": "''", "‛": "`", "«": "``", "»": "''", "‹": "`", "›": "'",
    "£": "#", "€": "$", "¤": "$", "₠": "$", "¢": "cents", "\xad": "",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "…": "...", "–": "--", "—": "--", "―": "--",
}  # fmt: skip
# The scores ignore these tokens. Their list also has brackets, but in capitals, which never occur.
PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""}


@functools.cache
def words(text):
    """The tokens, joined by spaces."""
    tokens, start = [], 0
    while start < len(text):
        if plain := PLAIN.match(text, start):
            tokens.append(plain[0].lower())
            start = plain.end()
            continue
        farthest = end = start
        if not text[start].isspace():
            for rule in RULES:
                match = rule.match(text, start)
                if match and match.end() > farthest:
                    farthest, end = match.end(), match.end(1)
        tokens.append(_spell(text[start:end]))
        start = max(end, start + 1)  # skips spaces, and characters that no rule matches, such as emoji
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def _spell(token):
    if re.fullmatch(f"{CONTRACTION}|{NOT}|{QUOTE}+", token, re.I):
        token = token.replace("’", "'").replace("‘", "`")
    elif re.fullmatch(r"[. \xa0]{3,}", token):
        return "..."
    elif re.fullmatch("-{2,4}", token):
        return "--"
    token = re.sub("&[a-z]+;|.", lambda part: SPELLING.get(part[0], part[0]), token)
    return token.lower().replace(" ", "\xa0")  # the space in "1 1/2" does not separate tokens
