"""A few of the trials of `make soak`, with another seed."""

import pytest

from tests.faults import soak


@pytest.mark.slow
@pytest.mark.parametrize("part", ["killed", "writes"])
def test_a_few_faults_at_random_instants(part):
    assert soak.trials(("stsb", "condlora"), part, 4, seed=1) == ["same"] * 4
