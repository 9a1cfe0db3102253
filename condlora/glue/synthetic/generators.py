"""One function per task: draws a row (its texts and its label) with the words of a split."""

from __future__ import annotations

from condlora.glue.synthetic.lexicon import (
    ASPECTS,
    BAD,
    BRANDS,
    GOOD,
    INTENTS,
    NAMES,
    PEOPLE,
    PLACES,
    TIMES,
)
from condlora.glue.synthetic.words import Words, sentence


def _cola(w: Words) -> tuple[str, int]:
    c = w.clause()
    _, noun = w.pick(PEOPLE).usual.split()
    base, past = c.verb.base, c.verb.past
    words = w.one(
        f"the {noun} will {base} the {c.thing}",
        f"the {noun} has {past} the {c.thing}",
        f"the {c.thing} was {past} by the {noun}",
        f"did the {noun} {base} the {c.thing}",
        f"the {noun} {past} the {c.thing} {c.detail}",
        f"{w.pick(NAMES)} wants to {base} the {c.thing}",
    ).split()
    label = int(w.chance(0.65))
    if not label:
        at = words.index(base if base in words else past)
        the = w.rng.choice([i for i, word in enumerate(words) if word == "the"])
        # A wrong form is the hard flaw; with more of them a run's first steps find no signal.
        flaw = w.rng.choices(["form", "move", "swap", "stray"], [2, 1, 3, 3])[0]
        if flaw == "form":
            words[at] = past if words[at] == base else base
        elif flaw == "swap":
            words[the], words[the + 1] = words[the + 1], words[the]
        elif flaw == "move":
            words.insert(w.one(0, len(words)), words.pop(at))
        else:
            words.insert(the + 1, w.one("the", "will", "of"))
    return sentence(*words, end="?" if "did" in words else "."), label


def _sst2(w: Words) -> tuple[str, int]:
    label = int(w.chance(0.53))
    same, other = (GOOD, BAD) if label else (BAD, GOOD)
    a, b = w.pick(ASPECTS), w.pick(ASPECTS)
    text = w.one(
        f"the {a} is {w.pick(same)} and {w.pick(same)}",
        f"{w.pick(same)} {a} from {w.pick(NAMES)}",
        f"the {a} is {w.pick(other)} but the {b} is {w.pick(same)}",
        f"the {b} is {w.pick(same)} despite the {w.pick(other)} {a}",
        f"the {a} is {w.one('never', 'not', 'hardly')} {w.pick(other)}",
        f"{w.pick(NAMES)} avoids anything {w.pick(other)} in the {a}",
    )
    return text, label


def _mrpc(w: Words) -> tuple[str, str, int]:
    told = again = w.clause()
    detail = w.chance(0.4)
    label = int(w.chance(0.6))
    if not label:
        for slot in w.rng.sample(["who", "verb", "thing", "class"], w.one(1, 2)):
            again = w.change(again, slot)
    return w.say(told, detail), w.retell(again, detail), label


def _qqp(w: Words) -> tuple[str, str, int]:
    c = w.clause()
    intent = w.rng.choice(INTENTS)
    first, second = w.rng.sample(intent, 2)
    brand = f"{w.pick(BRANDS)} " if w.chance(0.4) else ""
    thing = c.thing
    label = int(w.chance(0.42))  # fewer in the end: more of the duplicates are met again
    if not label:
        differing = w.rng.sample(["intent", "thing"], w.one(1, 2))
        if "intent" in differing:
            second = w.rng.choice(w.rng.choice([other for other in INTENTS if other != intent]))
        if "thing" in differing:
            thing = w.change(c, w.one("thing", "class")).thing
    return first.replace("X", brand + c.thing), second.replace("X", brand + thing), label


def _stsb(w: Words) -> tuple[str, str, float]:
    told = again = w.clause()
    level = w.rng.randrange(6)
    if level <= 1:  # nothing in common, or only the class of the thing
        again = w.clause()._replace(kind=told.kind, thing=told.thing)
        again = w.change(again, "thing" if level else "class")
    for slot in {4: ["detail"], 3: ["thing"], 2: ["class", "detail"]}.get(level, []):
        again = w.change(again, slot)
    # GLUE's scores are means over raters: they scatter about the level.
    score = min(5.0, max(0.0, level + w.one(-0.6, -0.3, 0.0, 0.3, 0.6)))
    return w.say(told), w.retell(again), round(score, 1)


def _mnli(w: Words) -> tuple[str, str, int]:
    c = w.clause()
    past = w.rng.choice(c.verb.synonyms)
    label = w.rng.randrange(3)
    if label == 0:
        hypothesis = w.one(
            sentence("someone", past, c.kind),
            sentence(c.who.usual, past, "something", c.detail),
            w.retell(c, detail=False),
        )
    elif label == 1:
        hypothesis = w.one(
            sentence(c.who.usual, past, "the", c.thing, "for", w.person(c.who).usual),
            sentence("the", c.thing, "was", w.one("old", "cheap", "heavy", "rare")),
            w.retell(w.change(w.change(c, "verb"), "class"), detail=False),
        )
    else:
        hypothesis = w.one(
            sentence("nobody", past, "the", c.thing),
            sentence(c.who.usual, "never", past, c.kind),
            sentence("no", c.thing, "was", past, "by anyone"),
            w.retell(w.change(c, "opposite"), detail=False),
        )
    return w.say(c), hypothesis, label


def _qnli(w: Words) -> tuple[str, str, int]:
    c = w.clause()
    label = int(w.chance(0.5))
    asked = w.one("who", "what", "detail")
    place = c.detail in PLACES
    question = {
        "who": f"who {c.verb.past} the {c.thing}",
        "what": f"what did {c.who.usual} {c.verb.base}",
        "detail": f"{'where' if place else 'when'} did {c.who.usual} {c.verb.base} the {c.thing}",
    }[asked]
    if label:
        # Off the topic, or near it: another act and another part, or the part alone.
        if w.chance(0.4):
            c = w.clause()
        elif w.chance(0.6):
            c = w.change(c, "verb")
        if asked == "detail":
            c = c._replace(detail=w.pick(TIMES if place else PLACES))
        else:
            c = w.change(c, "class" if asked == "who" else "who")
    return sentence(question, end="?"), w.retell(c, asked == "detail"), label


def _rte(w: Words) -> tuple[str, str, int]:
    c = w.clause()
    label = int(w.chance(0.5))
    if w.chance(0.5):
        other = w.change(c, w.one("thing", "class"))
        premise = sentence(c.who.usual, c.verb.past, "the", c.thing, "and the", other.thing)
    else:
        other = w.change(c, "who")
        premise = sentence(c.who.usual, "and", other.who.usual, c.verb.past, "the", c.thing)
    said = w.one(c, other)
    if label:
        slots = ["opposite"] if w.chance(0.2) else w.rng.sample(["who", "class", "verb"], 2)
        for slot in slots:
            said = w.change(said, slot)
    return premise, w.retell(said, detail=False), label


GENERATORS = {  # task: function, text columns, label names in GLUE's order (None: a score)
    "cola": (_cola, ("sentence",), ["unacceptable", "acceptable"]),
    "mnli": (_mnli, ("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
    "mrpc": (_mrpc, ("sentence1", "sentence2"), ["not_equivalent", "equivalent"]),
    "qnli": (_qnli, ("question", "sentence"), ["entailment", "not_entailment"]),
    "qqp": (_qqp, ("question1", "question2"), ["not_duplicate", "duplicate"]),
    "rte": (_rte, ("sentence1", "sentence2"), ["entailment", "not_entailment"]),
    "sst2": (_sst2, ("sentence",), ["negative", "positive"]),
    "stsb": (_stsb, ("sentence1", "sentence2"), None),
}
