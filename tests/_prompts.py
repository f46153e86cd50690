"""Prompts that are hard on a tokenizer, for comparing with a peer."""

import random
import sys
import unicodedata

WORDS = (
    "a photo of an astronaut riding it's they'RE I'LL don't 'D 'S !'s ''ve x'smallx ½Ⅷ² 3rd 2,000 ÉCOLE naïve Σοφος "
    "ΟΔΟΣ İstanbul ß ﬁ 日本語の 漢字 한국어 हिन्दी العربية ไทย 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️ … — “quoted” e\u0301 \u0390 "
    "\u0345 __init__ a_b $100 c++ 10^5 ~ ``` unaffable antidisestablishmentarianism aaaaaaaaaaaaaaaaa \x00 \x1c "
    "\x85 \u200b \u2028 \ufeff"
).split(" ") + ["\n", "\t\t", "\u3000", "\u00a0"]


def characters():
    """Every character whose kind has not changed since Unicode 3.2, so that all libraries agree on it, and emoji."""
    known = filter(_as_ever, map(chr, range(1, sys.maxunicode + 1)))
    return [*known, *map(chr, range(0x1F300, 0x1F650))]


def _as_ever(char):
    category = unicodedata.category(char)
    return category not in ("Cn", "Cs") and category == unicodedata.ucd_3_2_0.category(char)


def random_prompts(n, marks, seed=0):
    """Of words, of any characters, of a few that interact, and of words with characters put in; `marks` among them."""
    r, chars, words = random.Random(seed), characters(), WORDS + marks
    few = "aeiou'stredlmv1 ½!_<|>[]ÉÀ\u0301\u0316"
    for _ in range(n):
        kind = r.randrange(4)
        if kind == 0:
            yield r.choice([" ", " ", ""]).join(r.choices(words, k=r.randint(0, 20)))
        elif kind == 1:
            yield "".join(r.choices(chars, k=r.randint(0, 30)))
        elif kind == 2:
            yield "".join(r.choices(few, k=r.randint(0, 200)))
        else:
            text = " ".join(r.choices(words, k=5))
            for _ in range(5):
                at = r.randint(0, len(text))
                text = text[:at] + r.choice(chars) + text[at:]
            yield text
