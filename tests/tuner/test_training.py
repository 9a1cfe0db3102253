"""Training and its surroundings: gradients, checkpointing, compilation, several processes, copies."""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from condlora import CondLoraConfig
from condlora.errors import AdapterError
from condlora.tuner.kept import kept_factors
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.methods import METHODS
from tests.tuner.families import FAMILIES, IDS, adapted, logits

ROOT = Path(__file__).resolve().parents[2]


def gradients(model, family="bert"):
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model(**FAMILIES[family].inputs()).logits.square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(family, use_reentrant):
    expected = gradients(adapted(family), family)
    model = adapted(family)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    for name, gradient in gradients(model, family).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["code", "literal", "consistent"])
def test_compiled_without_a_graph_break_it_equals_eager(form):
    """Loss and gradients in training, the output at inference."""
    model = adapted("bert", form, base=FAMILIES["bert"].build(num_hidden_layers=2))
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled), logits(model), rtol=1e-5, atol=1e-6)
    expected, found = gradients(model), gradients(compiled)
    for name, gradient in found.items():
        wanted = expected[name.removeprefix("_orig_mod.")]
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-8)


def test_a_gradient_of_one_map_sums_over_the_layers_that_share_it():
    model = adapted("bert")
    layers = [m for m in model.modules() if isinstance(m, CondLoraLayer)]
    layers = [layer for layer in layers if layer.group["default"].endswith("query")]
    theta = layers[0].theta("default")[0]
    outputs = [layer(torch.ones(1, 16)).sum() for layer in layers]
    apart = [torch.autograd.grad(output, theta, retain_graph=True)[0] for output in outputs]
    together = torch.autograd.grad(sum(outputs), theta)[0]
    assert len(apart) == 3 and all(g.abs().max() > 0 for g in apart)
    torch.testing.assert_close(together, sum(apart))


def test_dropout_falls_on_the_adapters_input_alone():
    """The authors' layer drops the frozen path's input too; with B = 0 nothing may change here."""
    base = FAMILIES["bert"].build()
    layer_input = torch.randn(4, 16)
    expected = base.bert.encoder.layer[0].attention.self.query(layer_input)
    model = adapted("bert", base=base, lora_dropout=0.9, init_weights=True).train()
    layer = model.get_base_model().bert.encoder.layer[0].attention.self.query
    assert torch.equal(layer(layer_input), expected)
    with torch.no_grad():
        layer.theta("default")[1].fill_(1.0)
    torch.manual_seed(1)
    first = layer(layer_input)
    assert not torch.equal(layer(layer_input), first)  # drawn anew at each call
    torch.manual_seed(1)
    assert torch.equal(layer(layer_input), first)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_shares_maps_among_its_own_layers_and_none_with_the_original(copy_of):
    model = adapted("bert")
    before = logits(model)
    twin = copy_of(model)
    assert torch.equal(logits(twin), before)
    with torch.no_grad():
        for pair in twin.base_model.maps().values():
            pair[0].mul_(2.0)
    assert torch.equal(logits(model), before)
    pointers = {
        layer.theta("default")[0].data_ptr()
        for layer in twin.modules()
        if isinstance(layer, CondLoraLayer)
    }
    assert len(pointers) == 2  # query and value
    assert not torch.allclose(logits(twin), before, atol=1e-4)


def test_factors_are_made_once_at_inference_and_anew_when_anything_they_rest_on_changes():
    model = adapted("bert")
    layer = next(m for m in model.modules() if isinstance(m, CondLoraLayer))
    with torch.no_grad():
        first = kept_factors(layer, "default")
        assert kept_factors(layer, "default")[0] is first[0]
        layer.theta("default")[0].mul_(2.0)
        second = kept_factors(layer, "default")
        torch.testing.assert_close(second[0], 2.0 * first[0])
        layer.weight.mul_(3.0)
        torch.testing.assert_close(kept_factors(layer, "default")[1], 3.0 * first[1])
        layer.theta("default")[0].data.mul_(0.5)  # past torch's version counter
        model.eval()
        torch.testing.assert_close(kept_factors(layer, "default")[0], 3.0 * first[0])
        model.double()
        torch.testing.assert_close(kept_factors(layer, "default")[0], 3.0 * first[0].double())
    assert kept_factors(layer, "default")[0].requires_grad  # not kept where gradients are wanted


def test_inference_follows_an_optimizers_steps():
    model = adapted("bert")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    seen = [logits(model)]
    for _ in range(2):
        model(input_ids=IDS).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(logits(model))
        torch.testing.assert_close(
            seen[-1], model(input_ids=IDS).logits.detach(), rtol=1e-5, atol=1e-6
        )
    assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[1], seen[2])


def test_works_in_inference_mode():
    model = adapted("bert")
    expected = logits(model)
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, expected)
        assert torch.equal(adapted("bert")(input_ids=IDS).logits, expected)  # made there as well


def test_transforms_of_torch_func_see_through_the_factors():
    model = adapted("bert")
    layer = next(m for m in model.modules() if isinstance(m, CondLoraLayer))
    theta_A, theta_B = (theta.detach() for theta in layer.theta("default"))
    x = torch.randn(2, 16)

    def output(scale):
        names = ("condlora_theta_A.default", "condlora_theta_B.default")
        values = dict(zip(names, (theta_A * scale, theta_B), strict=True))
        return torch.func.functional_call(layer, values, (x,))

    scales = torch.tensor([1.0, 2.0])
    with torch.no_grad():
        together = torch.func.vmap(output)(scales)
        torch.testing.assert_close(together, torch.stack([output(scale) for scale in scales]))


def test_maps_that_come_and_go_at_one_address_are_told_apart():
    """Each is freed before the next is made, and at this size the next often takes its place in memory."""
    base = torch.nn.Sequential(OrderedDict(query=torch.nn.Linear(256, 256)))
    model = get_peft_model(base, CondLoraConfig(r=64, target_modules=["query"])).eval()
    layer = next(m for m in model.modules() if isinstance(m, CondLoraLayer))
    theta_A, theta_B, x = torch.randn(64, 256), torch.randn(64, 256), torch.randn(2, 256)

    def added(scale):
        names = ("condlora_theta_A.default", "condlora_theta_B.default")
        values = dict(zip(names, (theta_A * scale, theta_B), strict=True))
        return torch.func.functional_call(layer, values, (x,)) - layer.base_layer(x)

    with torch.no_grad():
        once = added(1)
        for scale in range(2, 40):
            torch.testing.assert_close(added(scale), scale * once, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_are_said_in_a_sentence(where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = adapted("bert")
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    with pytest.raises(AdapterError, match="offloaded"):
        logits(model)


@pytest.mark.parametrize("bias", ["all", "condlora_only"])
def test_biases_are_trained_where_that_is_asked_for(bias):
    model = adapted("bert", bias=bias)
    with pytest.warns(UserWarning, match="bias"), model.disable_adapter():
        pass
    trained = {n for n, p in model.named_parameters() if p.requires_grad and n.endswith(".bias")}
    outside = {
        n for n in trained if ".query." not in n and ".value." not in n and "classifier" not in n
    }
    assert len(trained - outside) >= 6 and bool(outside) == (bias == "all")


WORKER = """
import json, os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.tuner.families import IDS, adapted
from tests.tuner.test_training import three_steps
torch.set_num_threads(1)
rank, path, checkpointing, cases = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{path}/meeting", rank=rank, world_size=2)
ids = torch.cat([IDS, IDS + 25]).reshape(2, 3, 8)[rank]
for method, options in cases.items():
    if "seed" in options:  # as where each process draws its own: the first one's is to serve
        options["seed"] += rank
    model = adapted("bert", method=method, options=options)
    if checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    three_steps(DistributedDataParallel(model.train()), model, ids)
    if rank == 0:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        torch.save(trained, f"{path}/{method}.pt")
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that is shutting down
"""


def three_steps(model, adapted_model, ids):
    """Train; `model` is the adapted one or what spreads it over processes."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in (1, 2, 3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids[:, 0] % 3).loss.backward()
        optimizer.step()
        if adapted_model.peft_config["default"].method == "cond_adalora":
            adapted_model.base_model.update_and_allocate(step)


def two_processes(checkpointing, folder, cases):
    """Train each method on two gloo processes; what the first has at the end of each, and what it said."""
    words = [sys.executable, "-c", WORKER]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [*words, str(rank), str(folder), checkpointing, json.dumps(cases)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=120)[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said[0][-2000:]
    trained = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in cases}
    return trained, said[0]


@pytest.mark.slow
def test_two_processes_with_reentrant_checkpointing_are_warned(tmp_path):
    """DDP sees a shared map as ready when the first layer's segment is: the average misses the others."""
    _, said = two_processes("reentrant", tmp_path, {"condlora": {}})
    assert '{"use_reentrant": False}' in said


EVERY_METHOD = {name: {} for name in METHODS} | {
    "nola": {"bases": 5, "seed": 1},
    "condlora_random": {"seed": 1},
    "condlora_frozen_b": {"seed": 1},
    "half_lora": {"seed": 1},
    "melora": {"blocks": 2},
    "cond_adalora": {"target_r": 2, "total_step": 4, "tinit": 0, "tfinal": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpointing", "cases"),
    [
        ("none", EVERY_METHOD),
        pytest.param("not reentrant", {"condlora": {}}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(checkpointing, cases, tmp_path):
    together, said = two_processes(checkpointing, tmp_path, cases)
    assert "shared map" not in said
    for method, options in cases.items():
        model = adapted("bert", method=method, options=options).train()
        three_steps(model, model, torch.cat([IDS, IDS + 25]))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(
                    together[method][name], parameter.detach(), rtol=1e-4, atol=1e-6
                )
