"""The words of the synthetic tasks: persons, verbs, things, places, times, opinions and questions, all our own.

The order of a list matters: words are drawn with Zipf's weights, and every fifth entry is held out for the
validation splits (see `condlora.glue.synthetic.words`). Changing a list changes the rows of every task that uses it.
"""

from __future__ import annotations

from typing import NamedTuple


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
