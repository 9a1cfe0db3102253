"""The learning rate of each task and method of a profile, chosen on validation.

    run       the search: studies in one process or several, then the table and the file of rates
    studies   which trials a study has, stage by stage, and which of them a worker does
    rules     the next rate, from the rates and scores so far; pure functions
    trials    one trial: a run and its score on validation
    storage   where trials are entered
    files     search.csv and configs/rates/<profile>.yaml

A study is one task and method. A trial is one rate and seed: a run of `condlora.training.run` like any other, kept under
`<runs>/search`. A rate's score is the mean over its seeds. Every study follows the same stages:

    first      the same few rates for all studies; with `around` the rate that another profile's search chose, half of it
               and twice it
    further    `further` more rates, each where those before it point (`rules.next_rate`), since the best rates of
               methods lie far apart
    extended   rates below the lowest or above the highest one, as long as that one is the best (`extend`)
    refined    the two rates next to the best by a factor of sqrt 2 (`refine`)

Nothing is random: a search that was killed does the same trials when it is started again. Any number of workers may do one
search on one runs folder: a trial is claimed before it is done, as a run is (`condlora.runs.lease`), from before its run
until it is entered, and what follows is computed from the trials that are entered. So all workers do the trials of one.

The chosen rates are written to `configs/rates/<profile>.yaml`, which a profile reads with the entry
`- optional /rates: <profile>` in its defaults.

The rate is chosen by the run's curve, which is on the held-out part of the training set. Each run also records its
score on the test set. The search does not read it, and accepts a trial whose test score is undefined.

Optuna keeps the trials of each task and method in a file of its own (SQLite). A trial is entered in one write when its run
has ended, so a kill leaves no partial entry.

What does not belong here: training (`condlora.training`), and the cells of a profile (`condlora.grid`).
"""
