"""Synthetic stand-ins for eight GLUE tasks, for machines that cannot download GLUE.

`generate` returns the columns, label order and split names of `nyu-mll/glue`, filled with short
English sentences from the grammar and the word lists of this folder (our own: no text of GLUE is in them).
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

from typing import Any

import datasets

from condlora.glue.synthetic.generators import GENERATORS
from condlora.glue.synthetic.lexicon import OTHER_THINGS, THINGS
from condlora.glue.synthetic.words import Words

TASKS = tuple(GENERATORS)


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
    if task not in GENERATORS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    make, columns, names = GENERATORS[task]
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
