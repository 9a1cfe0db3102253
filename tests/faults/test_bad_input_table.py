"""docs/bad_input.md says what each bad input gets, word for word."""

import pytest

from tests.faults.bad_inputs import PAGE, TABLES, updated


@pytest.mark.slow
def test_the_tables_of_bad_inputs_say_what_each_gets():
    page = PAGE.read_text()
    assert updated(page) == page, "run python -m tests.faults.bad_inputs and read what changed"


def test_the_page_has_no_other_tables():
    headings = [line[3:] for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert set(TABLES) <= set(headings)
