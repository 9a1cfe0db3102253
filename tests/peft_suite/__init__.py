"""PEFT's own test suite with rows for CondLoRA: `make test-peft`, or `python -m tests.peft_suite`.

    __main__   fetches the source of the installed PEFT, adds the rows, runs the tests and prints how many failed
    rows       which rows of PEFT's tables CondLoRA gets: those of LoRA whose settings it has too
    models     tiny random models under the names that the tests load from the hub
    plugin     keeps the tests of LoRA, VeRA and CondLoRA, and writes their outcomes to a file

The tests of PEFT are not part of this repository: they come from PEFT's source distribution (Apache License 2.0).
"""
