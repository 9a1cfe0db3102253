"""The comparison of learning rates on its smallest model, with few steps."""

import pytest
from omegaconf import OmegaConf

from benchmarks.learning_rates import learning_rates
from condlora.errors import ConfigError

SETTINGS = {"glue": None, "seeds": 2, "steps": 20, "pretraining_steps": 30, "encoder_tokens": 16}


def rows(rates):
    return learning_rates(OmegaConf.create({"learning_rates": SETTINGS | {"rates": rates}}))


@pytest.mark.slow
def test_each_method_rate_and_seed_is_a_row_after_that_of_the_model_alone():
    table = rows({"vision": [0.02]})
    assert list(table.method) == ["none", *["lora", "condlora"] * 2]
    assert list(table.seed[1:]) == [0, 0, 1, 1]
    assert set(table.form[table.method == "condlora"]) == {"code"}
    assert (table.loss[1:] < table.loss[0]).all()
    assert table.accuracy.between(0, 1).all()


def test_a_run_whose_loss_is_not_finite_has_no_score():
    table = rows({"vision": [1e30]})
    assert table.loss[1:].isna().all()


def test_text_needs_a_folder():
    with pytest.raises(ConfigError, match="set it to a folder of GLUE"):
        rows({"decoder": [0.01]})
