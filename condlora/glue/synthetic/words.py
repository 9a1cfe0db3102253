"""Draws words and clauses for one split and turns clauses into sentences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from condlora.glue.synthetic.lexicon import NAMES, PEOPLE, PLACES, TIMES, VERBS, Person, Verb

T = TypeVar("T")


class Clause(NamedTuple):
    """What a plain sentence says: who did what to which thing (of which class), where or when."""

    who: Person
    verb: Verb
    kind: str
    thing: str
    detail: str


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
        """Draw one of a few ways to build a row, with equal probability in every split."""
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
        return sentence(c.who.usual, c.verb.past, "the", c.thing, c.detail if detail else "")

    def retell(self, c: Clause, detail: bool = True) -> str:
        """Say a clause with rarer words, in either voice."""
        who, past, tail = c.who.rare, self.rng.choice(c.verb.synonyms), c.detail if detail else ""
        if self.chance(0.4):
            return sentence("the", c.thing, "was", past, "by", who, tail)
        return sentence(who, past, "the", c.thing, tail)


def sentence(*words: str, end: str = ".") -> str:
    text = " ".join(word for word in words if word)
    return text[0].upper() + text[1:] + end
