"""Synthetic stand-ins for eight GLUE tasks, for machines that cannot download GLUE.

`generate` returns the columns, label order and split names of `nyu-mll/glue`, filled with short
English sentences from the grammar and the word lists below (our own: no text of GLUE is in them).
The texts are short so that a run of a small model costs seconds, and no task is trivial for it.

cola  a clause with a wrong verb form, swapped words, a misplaced verb or a stray word is bad
sst2  opinions on works of art; negation, `but` and `despite` reverse single words
mrpc  a report retold with rarer words; one retold with one or two changed parts is not the same
qqp   two questions about a thing: no duplicates if the intent, the thing or both differ
stsb  two reports; the score falls with the parts that differ (detail, thing, class, everything)
mnli  entailed by dropping or generalising, neutral by adding, contradicted by denial or antonym
qnli  does the sentence hold what the question asks for: the person, thing, place or time
rte   does one half of a sentence with `and` follow, or has it two changed parts or an antonym

Held out: every fifth entry of every word list, together with its synonyms and antonym, is drawn in
the validation splits only, and in MNLI's mismatched split every thing comes from another genre.
The other entries are drawn with Zipf's weights, so that a random part of `train` (the project
takes a tenth of it as its own validation set) meets words that the rest of `train` lacks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import datasets

T = TypeVar("T")


class Person(NamedTuple):
    """The usual word for a person and a rarer one for the same person."""

    usual: str
    rare: str


class Verb(NamedTuple):
    """Base form, past form (also the participle), synonyms and antonym in the past form."""

    base: str
    past: str
    synonyms: tuple[str, ...]
    opposite: str


class Clause(NamedTuple):
    """What a plain sentence says: who did what to which thing (of which class), where or when."""

    who: Person
    verb: Verb
    kind: str
    thing: str
    detail: str


def _entries(table: str) -> list[str]:
    """Entries of a table, parted by `|` or by the end of a line."""
    return [entry for line in table.splitlines() for entry in line.split("|") if entry]


def _words(table: str) -> list[str]:
    return table.split()


def _person(entry: str) -> Person:
    usual, rare = entry.split()
    return Person(f"the {usual}", f"the {rare}")


def _verb(entry: str) -> Verb:
    base, past, synonyms, opposite = entry.split()
    return Verb(base, past, tuple(synonyms.split(",")), opposite)


def _classes(table: str) -> dict[str, list[str]]:
    """Lines of the form `class: member member`."""
    lines = (line.split(":") for line in table.strip().splitlines())
    return {kind: members.split() for kind, members in lines}


NAMES = _words("""
Mara Tobin Elena Oskar Hugo Nadia Felix Ingrid Clara Bruno Yuki Dora Marcus Anton Greta Rafael
Sonia Victor Jonas Petra Diego Hana Walter Irene Lucia Stefan Rosa Edith Pavel Carmen Olga Leila
Desmond Fiona Mateo Astrid Gilbert Henrik Ivan Beatrice Omar Selma Cedric Naomi Ludwig Samir Tomas
Esther Arjun Wanda Emil Tamara Boris Lydia Kenji Harriet Milo Ursula Andre Bianca Otto Regina
Callum Stanley Viola Gustav Mina Rupert Enzo Agnes Judith Celeste Abdul Marion Igor Ravi Priya
Vera Jasper Flora Conrad Helga Simone Basil Ramona Quentin Maud Ulrich Ines Leopold Cora Alistair
Magda Rufus Odette Hamid Greer Lorenzo Sabine Tilda Amos Verity Noor Freya Kofi Zara Thelma
""")
# Invented names follow, of families or brands: a long tail of words met a few times at most.
_HEADS = _words("Bel Cor Dal Fen Gar Hal Kes Lor Mar Nor Pel Ros Sel Tor Val Wes Yar Zel Bran Del")
_TAILS = _words("mont by tan wick ley dine aro mer sk ix ford eck una holt ris ona vik low")
BRANDS = [head + tail for tail in _TAILS for head in _HEADS]
NAMES += BRANDS
PEOPLE = [
    _person(entry)
    for entry in _entries("""
teacher instructor|doctor physician|boy lad|lawyer attorney|thief robber|author writer|cook chef
boss manager|sailor mariner|farmer rancher|student pupil|king monarch|painter artist|guard watchman
soldier trooper|servant maid|woman lady|neighbour resident|merchant trader|singer vocalist
priest clergyman|tourist traveller|reporter journalist|scientist researcher|baby infant
judge magistrate|hunter trapper|tailor dressmaker|beggar tramp|wizard sorcerer|champion winner
employee worker|pilot aviator|captain skipper|inventor creator|banker financier|criminal crook
""")
]
VERBS = [
    _verb(entry)
    for entry in _entries("""
buy bought purchased,acquired sold|find found discovered,located lost
clean cleaned washed,scrubbed soiled|fix fixed repaired,mended broke
collect collected gathered,assembled scattered|keep kept retained,saved discarded
praise praised commended,applauded criticised|want wanted desired,craved rejected
accept accepted welcomed,received refused|love loved adored,cherished hated
build built constructed,made destroyed|lift lifted raised,hoisted dropped
protect protected guarded,defended attacked|examine examined inspected,studied ignored
choose picked selected,favoured dismissed|borrow borrowed rented,hired lent
remember remembered recalled,recollected neglected|damage damaged harmed,ruined restored
cover covered concealed,masked showed|bring brought delivered,fetched removed
""")
]
# Classes of things, as one says them after a verb; the second table is MNLI's other genre.
THINGS = _classes("""
food: soup bread cake cheese pie rice salad honey butter sausage pancake noodle pudding stew
an animal: horse dog goat rabbit parrot pony donkey kitten turtle lamb hen falcon camel ferret
a vehicle: truck bicycle boat van tractor motorcycle bus canoe wagon scooter taxi sled ferry
a tool: hammer saw shovel ladder drill axe rake wrench chisel screwdriver broom knife trowel
a garment: coat hat shirt scarf dress jacket glove sweater skirt vest apron sock cloak blouse
furniture: table chair lamp sofa desk shelf mirror bed cupboard bench wardrobe stool cradle
""")
OTHER_THINGS = _classes("""
an instrument: piano guitar violin drum flute trumpet harp banjo cello accordion clarinet
a jewel: ring necklace diamond bracelet crown brooch pearl ruby emerald pendant
a document: letter map diary contract novel passport poem newspaper leaflet notebook
""")
PLACES = _entries("""
in Oslo|at home|abroad|at school|upstairs|in Lisbon|outside|at work|in Rome|downtown|at sea|nearby
in Prague|at church|in Dublin|indoors|in Cairo|in prison|in Manila|underground|in Geneva|in Texas
in Nairobi|overseas|in Bogota|in Vienna|in Chile|in Naples|in Athens|in Delhi|in Warsaw|in Quebec
""")
TIMES = _entries("""
yesterday|last week|on Monday|today|in June|last night|on Friday|at noon|overnight|on Sunday
in October|at midnight|last summer|recently|in March|on Tuesday|at dusk|in winter|in August|at dawn
""")
TIMES += [f"in {1701 + 17 * i % 299}" for i in range(299)]  # years: a long tail, a token each
GOOD = _words("""
great wonderful funny brilliant charming moving clever beautiful superb delightful gripping fresh
excellent warm touching lovely sharp witty stunning thrilling elegant tender hilarious graceful
inventive memorable lively dazzling satisfying splendid heartfelt engaging masterful joyous
enchanting riveting sublime exquisite uplifting magnificent polished radiant admirable poignant
refreshing captivating marvellous spirited luminous compelling genuine amusing haunting flawless
""")
BAD = _words("""
bad boring dull awful terrible weak stupid ugly messy tedious silly clumsy lifeless horrible
predictable shallow bland annoying dreadful sloppy hollow tiresome painful pointless confused
forgettable lazy stale flat ridiculous grating dreary incoherent mediocre lame insipid wooden
unfunny irritating muddled soulless abysmal laughable contrived vapid plodding murky atrocious
lacklustre pretentious disjointed stilted derivative dire
""")
ASPECTS = _words("""
film movie story plot acting script music ending cast dialogue humour camera pace romance hero
direction comedy drama soundtrack villain scenery costume editing sequel premise finale narration
""")
# One intent a line, in three wordings; X is a thing.
INTENTS = [
    line.split("|")
    for line in """
How do I clean my X?|How should my X be washed?|What gets dirt off my X?
Where can I buy a new X?|Which shop sells the best X?|Who has a good X for sale?
How much is the X?|What does the X cost?|Is the X expensive?
How do I fix my X?|Who can repair my X?|What do I do with a broken X?
Is it safe to own this X?|Can a plain X be dangerous?|What are the risks of my X?
Who invented the X?|Where does the X come from?|What is the history of the X?
How heavy is this X?|What does the X weigh?|Is the X hard to lift?
""".strip().splitlines()
]


class Words:
    """Draws words for one split, so that no task has to care about what is held out."""

    def __init__(self, seed: str, held_out: bool, things: dict[str, list[str]]):
        self.rng = random.Random(seed)
        self.held_out = held_out
        self.things = things

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return self.rng.random() < p

    def one(self, *options: T) -> T:
        """Draw one of a few ways to build a row: all alike, in every split."""
        return self.rng.choice(options)

    def pick(self, options: Sequence[T], avoid: T | None = None) -> T:
        """Draw an open-class word: a held-out one at times, else by Zipf's law of the order.

        `avoid` (if given) is not drawn.
        """
        if self.held_out and self.chance(0.35):
            return self.rng.choice([o for o in options[4::5] if o != avoid])
        common = list(options)
        del common[4::5]
        if avoid in common:
            common.remove(avoid)
        return common[int(len(common) ** self.rng.random()) - 1]

    def person(self, avoid: Person | None = None) -> Person:
        if self.chance(0.5):
            return self.pick(PEOPLE, avoid)
        name = self.pick(NAMES, avoid and avoid.usual)
        return Person(name, name)

    def detail(self, avoid: str = "") -> str:
        return self.pick(PLACES if self.chance(0.5) else TIMES, avoid)

    def clause(self) -> Clause:
        kind = self.rng.choice(list(self.things))
        return Clause(
            self.person(), self.pick(VERBS), kind, self.pick(self.things[kind]), self.detail()
        )

    def change(self, c: Clause, slot: str) -> Clause:
        """Put another value in one slot of `c`.

        Slot `class` takes a thing of another class, slot `opposite` the verb's antonym.
        """
        if slot == "class":
            kind = self.rng.choice([k for k in self.things if k != c.kind])
            return c._replace(kind=kind, thing=self.pick(self.things[kind]))
        if slot == "opposite":
            past = c.verb.opposite
            return c._replace(verb=Verb(past, past, (past,), c.verb.past))
        new = {
            "who": lambda: self.person(c.who),
            "verb": lambda: self.pick(VERBS, c.verb),
            "thing": lambda: self.pick(self.things[c.kind], c.thing),
            "detail": lambda: self.detail(c.detail),
        }[slot]()
        return c._replace(**{slot: new})

    def say(self, c: Clause, detail: bool = True) -> str:
        """Say a clause with its usual words, in the active voice."""
        return _sentence(c.who.usual, c.verb.past, "the", c.thing, c.detail if detail else "")

    def retell(self, c: Clause, detail: bool = True) -> str:
        """Say a clause with rarer words, in either voice."""
        who, past, tail = c.who.rare, self.rng.choice(c.verb.synonyms), c.detail if detail else ""
        if self.chance(0.4):
            return _sentence("the", c.thing, "was", past, "by", who, tail)
        return _sentence(who, past, "the", c.thing, tail)


def _sentence(*words: str, end: str = ".") -> str:
    text = " ".join(word for word in words if word)
    return text[0].upper() + text[1:] + end


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
    return _sentence(*words, end="?" if "did" in words else "."), label


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
            _sentence("someone", past, c.kind),
            _sentence(c.who.usual, past, "something", c.detail),
            w.retell(c, detail=False),
        )
    elif label == 1:
        hypothesis = w.one(
            _sentence(c.who.usual, past, "the", c.thing, "for", w.person(c.who).usual),
            _sentence("the", c.thing, "was", w.one("old", "cheap", "heavy", "rare")),
            w.retell(w.change(w.change(c, "verb"), "class"), detail=False),
        )
    else:
        hypothesis = w.one(
            _sentence("nobody", past, "the", c.thing),
            _sentence(c.who.usual, "never", past, c.kind),
            _sentence("no", c.thing, "was", past, "by anyone"),
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
    return _sentence(question, end="?"), w.retell(c, asked == "detail"), label


def _rte(w: Words) -> tuple[str, str, int]:
    c = w.clause()
    label = int(w.chance(0.5))
    if w.chance(0.5):
        other = w.change(c, w.one("thing", "class"))
        premise = _sentence(c.who.usual, c.verb.past, "the", c.thing, "and the", other.thing)
    else:
        other = w.change(c, "who")
        premise = _sentence(c.who.usual, "and", other.who.usual, c.verb.past, "the", c.thing)
    said = w.one(c, other)
    if label:
        slots = ["opposite"] if w.chance(0.2) else w.rng.sample(["who", "class", "verb"], 2)
        for slot in slots:
            said = w.change(said, slot)
    return premise, w.retell(said, detail=False), label


_TASKS = {  # task: generator, text columns, label names in GLUE's order (none: a score)
    "cola": (_cola, ("sentence",), ["unacceptable", "acceptable"]),
    "mnli": (_mnli, ("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
    "mrpc": (_mrpc, ("sentence1", "sentence2"), ["not_equivalent", "equivalent"]),
    "qnli": (_qnli, ("question", "sentence"), ["entailment", "not_entailment"]),
    "qqp": (_qqp, ("question1", "question2"), ["not_duplicate", "duplicate"]),
    "rte": (_rte, ("sentence1", "sentence2"), ["entailment", "not_entailment"]),
    "sst2": (_sst2, ("sentence",), ["negative", "positive"]),
    "stsb": (_stsb, ("sentence1", "sentence2"), None),
}
TASKS = tuple(_TASKS)


def generate(
    task: str, seed: int = 0, train_rows: int = 2000, test_rows: int = 500
) -> datasets.DatasetDict:
    """Make the stand-in of one GLUE task; the same arguments give the same rows everywhere.

    Columns are those of `nyu-mll/glue`: the task's one or two texts, `label` (ClassLabel, or
    float32 in 0..5 for stsb) and `idx` (int32, 0..rows-1 in each split). Splits: `train` with
    `train_rows` rows, and `validation` (mnli: `validation_matched` and `validation_mismatched`)
    with `test_rows` rows each. No row's texts occur twice in the whole.

    Raises ValueError for a task that is not one of `TASKS`.
    """
    if task not in _TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    make, columns, names = _TASKS[task]
    features = datasets.Features(
        {column: datasets.Value("string") for column in columns}
        | {"label": datasets.ClassLabel(names=names) if names else datasets.Value("float32")}
        | {"idx": datasets.Value("int32")}
    )
    tests = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split in ["train", *tests]:
        things = OTHER_THINGS if split == "validation_mismatched" else THINGS
        # A string seeds random.Random by its digest: the same on every platform and process.
        w = Words(f"{task}/{seed}/{split}", split != "train", things)
        rows: list[dict[str, Any]] = []
        while len(rows) < (train_rows if split == "train" else test_rows):
            *texts, label = make(w)
            if tuple(texts) not in seen:
                seen.add(tuple(texts))
                rows.append(
                    dict(zip(columns, texts, strict=True)) | {"label": label, "idx": len(rows)}
                )
        splits[split] = datasets.Dataset.from_list(rows, features=features)
    return datasets.DatasetDict(splits)
