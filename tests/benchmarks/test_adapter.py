import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import adapter
from condlora.tuner.layer import Linear

SHAPE = OmegaConf.create({"hidden_size": 16, "layers": 2, "heads": 2})


def gradients(way: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    base = adapter.classifier(SHAPE).eval()
    one = adapter.Contestant(way, base)
    theta = [p for name, p in one.model.named_parameters() if "theta_" in name]
    for seed, parameter in enumerate(theta):
        drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.data = 0.1 * drawn
    one.model.eval()
    one.make()
    inputs = {"input_ids": torch.arange(12).reshape(2, 6), "labels": torch.tensor([0, 1])}
    one.model(**inputs).loss.backward()
    return [parameter.grad for parameter in theta]


@pytest.mark.parametrize(("way", "method"), [("stacked", "code"), ("from_output", "consistent")])
def test_a_way_of_computing_the_same_step_gives_the_same_gradients(way, method):
    for found, expected in zip(gradients(way), gradients(method), strict=True):
        torch.testing.assert_close(found, expected)


def test_in_the_stacked_step_no_layer_makes_factors_of_its_own(monkeypatch):
    def made_alone(layer, adapter_name="default"):
        raise AssertionError("made by the layer alone")

    monkeypatch.setattr(Linear, "materialise", made_alone)
    gradients("stacked")
