"""One run from config to record, on a toy backbone."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModelForSequenceClassification as Classifier
from safetensors.torch import load_file, save_file

from condlora.errors import ConfigError, DeviceError, DivergedError, RunFolderError, UndefinedScore
from condlora.models.adapters import load_factors
from condlora.models.backbones import load_backbone
from condlora.runs.record import read_record, run_folder
from condlora.training import device, evaluation, selection, setup, timing
from condlora.training import run as finetune
from condlora.training import step as stepping
from condlora.training.data import prepare
from tests.faults.harness import small_files
from tests.tasks import slow

ROUNDS = timing.TIMED_ROUNDS  # conftest.py lowers it for all tests


def one(tiny_cells, *overrides):
    (cfg,) = tiny_cells(*overrides)
    return cfg


def adapter_of(cfg):
    return load_file(run_folder(cfg) / "adapter" / "adapter_model.safetensors")


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def rte(tiny_cells):
    return one(tiny_cells, "task=rte")


@pytest.fixture
def done(finished_cells):
    """The config of a finished run."""
    return one(finished_cells, "task=rte")


def test_record_is_complete_and_scores_match_the_stored_predictions(rte, monkeypatch):
    monkeypatch.setattr(timing, "TIMED_ROUNDS", ROUNDS)
    record = finetune.run(rte)
    folder = run_folder(rte)
    assert record == read_record(folder) == json.loads((folder / "record.json").read_text())
    assert record["status"] == "done"
    assert record["steps"] == 6
    assert record["parameters"]["adapter"] == 2 * 8 * (16 + 16)  # r (out + in) a kind
    assert record["data"]["counts"]["test"] == len(
        pd.read_parquet(folder / "predictions_test.parquet")
    )
    for split in ("validation", "test"):
        table = pd.read_parquet(folder / f"predictions_{split}.parquet")
        assert record[split]["accuracy"] == (table["label"] == table["prediction"]).mean()
    curve = pd.read_csv(folder / "curve.csv")
    assert curve["step"].tolist() == [3, 6]
    assert record["validation"]["accuracy"] == curve["accuracy"].max()
    assert 0.1 < record["merged_speed_over_backbone"] < 10
    assert record["best"]["step"] == curve.loc[curve["accuracy"].idxmax(), "step"]


def test_finished_run_is_not_run_again(done, monkeypatch):
    monkeypatch.setattr(finetune.Run, "_prepare", lambda *_: pytest.fail("trained again"))
    assert finetune.run(done) == read_record(run_folder(done))


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(done, tiny_cells, tmp_path):
    first, again = done, one(tiny_cells, "task=rte", f"runs={tmp_path}/again")
    other = one(tiny_cells, "task=rte", "seed=1")
    records = [finetune.run(cfg) for cfg in (first, again, other)]
    assert same_tensors(adapter_of(first), adapter_of(again))
    assert records[0]["test"] == records[1]["test"]
    assert not same_tensors(adapter_of(first), adapter_of(other))


@pytest.mark.parametrize("stream", ["initialisation", "data", "dropout"])
def test_each_random_stream_matters(done, tiny_cells, tmp_path, monkeypatch, stream):
    original = finetune.streams
    first, second = done, one(tiny_cells, "task=rte", f"runs={tmp_path}/other")
    monkeypatch.setattr(
        finetune, "streams", lambda seed, task: original(seed, task) | {stream: 12345}
    )
    finetune.run(second)
    assert not same_tensors(adapter_of(first), adapter_of(second))


def test_lora_and_condlora_of_one_seed_share_head_and_batches(tiny_cells, monkeypatch):
    """What makes the comparison paired."""
    heads, batches = [], []
    original = setup.training_batches
    monkeypatch.setattr(
        setup,
        "training_batches",
        lambda *a, **k: batches.append(original(*a, **k)) or batches[-1],
    )
    for cfg in tiny_cells("task=rte", "adapter=lora,condlora"):
        backbone = load_backbone(cfg.backbone, num_labels=2)
        model = setup.initialise(cfg, backbone, setup.streams(cfg.seed, cfg.task.name))
        heads.append([p for n, p in model.named_parameters() if "modules_to_save" in n])
        finetune.run(cfg)
    assert all(torch.equal(a, b) for a, b in zip(*heads, strict=True))
    assert not torch.equal(heads[0][0], next(iter(backbone.model.classifier.parameters())))
    assert list(batches[0].sampler) == list(batches[1].sampler)


def test_streams_depend_on_seed_and_task_and_on_nothing_else():
    assert setup.streams(0, "rte") == setup.streams(0, "rte")
    seeds = {
        s for seed in (0, 1) for task in ("rte", "cola") for s in setup.streams(seed, task).values()
    }
    assert len(seeds) == 12


def test_stale_run_is_set_aside_and_done_anew(done, tiny_cells):
    before = read_record(run_folder(done))
    changed = one(tiny_cells, "task=rte", "protocol.learning_rate=1e-3")
    after = finetune.run(changed)
    folder = run_folder(done)
    assert after["recipe_hash"] != before["recipe_hash"]
    aside = folder.with_name(f"{folder.name}.stale-{before['recipe_hash'][:8]}")
    assert read_record(aside) == before
    assert read_record(folder) == after


def test_damaged_run_is_set_aside_and_done_anew(done):
    record = read_record(run_folder(done))
    path = run_folder(done) / "record.json"
    path.write_text(path.read_text()[:100])
    assert finetune.run(done)["test"] == record["test"]
    assert len(list(path.parent.parent.glob("seed-0.damaged-*"))) == 1


def test_runtime_is_no_part_of_the_recipe(tiny_cells):
    a = one(tiny_cells, "task=rte")
    b = one(tiny_cells, "task=rte", "runtime.evaluation_batch_size=7", "runtime.padding=max_length")
    assert finetune.recipe_hash(finetune.recipe(a)) == finetune.recipe_hash(finetune.recipe(b))


@pytest.mark.parametrize(
    ("asked", "precision", "used"),
    [
        ("auto", "no", "packed_sdpa"),
        ("auto", "bf16", "packed_eager"),
        pytest.param("eager", "no", "packed_eager", marks=pytest.mark.slow),
    ],
)
def test_attention_is_chosen_for_the_precision_and_recorded(tiny_cells, asked, precision, used):
    cfg = one(
        tiny_cells, "task=rte", f"runtime.attention={asked}", f"protocol.precision={precision}"
    )
    assert finetune.run(cfg)["environment"]["attention"] == used


@pytest.mark.slow
def test_attention_changes_a_run_by_rounding_alone(tiny_cells, tmp_path):
    def losses(attention):
        cfg = one(
            tiny_cells,
            "task=rte",
            "protocol.precision=no",
            "+backbone.architecture.attention_probs_dropout_prob=0.0",
            "+backbone.architecture.hidden_dropout_prob=0.0",
            f"runtime.attention={attention}",
            f"runs={tmp_path}/{attention}",
        )
        finetune.run(cfg)
        return pd.read_csv(run_folder(cfg) / "curve.csv")["train_loss"].to_numpy()

    np.testing.assert_allclose(losses("eager"), losses("sdpa"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter", ["condlora", *slow("prefix_tuning", "dora", "lora_fa", "ln_tuning", "bitfit")]
)
def test_frozen_layers_held_in_half_precision_change_no_bit(
    tiny_cells, tmp_path, monkeypatch, adapter
):
    def trained(name):
        words = (f"adapter={adapter}", "protocol.precision=bf16", "protocol.max_length=100")
        cfg = one(tiny_cells, "task=rte", *words, f"runs={tmp_path}/{name}")
        return finetune.run(cfg)["test"], adapter_of(cfg)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "round_frozen", lambda model, _: model)
        scores, expected = trained("whole")
    found_scores, found = trained("held")
    assert found_scores == scores and same_tensors(found, expected)


@pytest.mark.parametrize("adapter", ["condlora", "lora_fa"])
def test_layers_of_an_adapter_or_under_it_stay_whole(tiny_cells, adapter):
    cfg = one(tiny_cells, "task=rte", f"adapter={adapter}", "protocol.precision=bf16")
    backbone = load_backbone(cfg.backbone, num_labels=2)
    model = setup.initialise(cfg, backbone, setup.streams(0, "rte"))
    model = device.round_frozen(model, device.make_accelerator(cfg))
    layer = model.base_model.model.bert.encoder.layer[0]
    assert layer.intermediate.dense.weight.dtype == torch.bfloat16
    assert layer.attention.self.key.bias.dtype == torch.bfloat16
    assert {p.dtype for p in layer.attention.self.query.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_unknown_attention_is_refused_in_a_sentence(tiny_cells):
    with pytest.raises(
        ConfigError, match=r"does not support runtime.attention=nonsense .*: use auto\."
    ):
        finetune.run(one(tiny_cells, "task=rte", "runtime.attention=nonsense"))


def test_batch_that_does_not_fit_is_split_to_the_same_effective_batch(tiny_cells, tmp_path):
    def run(name, fitting):
        cfg = one(
            tiny_cells,
            "task=stsb",
            "protocol.precision=no",
            "+backbone.architecture.attention_probs_dropout_prob=0.0",
            "+backbone.architecture.hidden_dropout_prob=0.0",
            f"runs={tmp_path}/{name}",
        )

        def forward(self, labels=None, original=Classifier.forward, **inputs):
            if self.training and len(labels) > fitting:
                raise torch.OutOfMemoryError
            return original(self, labels=labels, **inputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Classifier, "forward", forward)
            return finetune.run(cfg), adapter_of(cfg)

    (whole, expected), (split, found) = run("whole", 32), run("split", 10)
    assert (whole["parts_per_batch"], split["parts_per_batch"]) == (1, 4)
    assert whole["effective_batch"] == split["effective_batch"] == 32
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_example_that_does_not_fit_is_said_in_a_sentence(tiny_cells, monkeypatch):
    def forward(self, **inputs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Classifier, "forward", forward)
    with pytest.raises(
        DeviceError, match=r"One example does not fit .*: lower protocol.max_length"
    ):
        finetune.run(one(tiny_cells, "task=rte"))


def test_evaluation_that_does_not_fit_is_said_in_a_sentence_and_goes_on_with_less(
    tiny_cells, monkeypatch
):
    def forward(self, original=Classifier.forward, **inputs):
        if not self.training and len(inputs["input_ids"]) > 20:
            raise torch.OutOfMemoryError
        return original(self, **inputs)

    monkeypatch.setattr(Classifier, "forward", forward)
    words = ("task=rte", "runtime.checkpoint_steps=2")
    said = r"batch of 40 examples does not fit .*: set runtime.evaluation_batch_size=20 and run"
    with pytest.raises(DeviceError, match=said):
        finetune.run(one(tiny_cells, *words))
    record = finetune.run(one(tiny_cells, *words, "runtime.evaluation_batch_size=16"))
    assert record["resumed_at_steps"] == [2]


@pytest.mark.parametrize(("name", "size"), [("cpu", 64), ("cuda", 512)])
def test_evaluation_batches_are_as_large_as_the_setting_says_or_as_the_device_likes(
    tiny_cells, name, size
):
    cfg = one(tiny_cells, "task=rte")
    assert evaluation.batch_size(cfg, torch.device(name)) == size
    cfg = one(tiny_cells, "task=rte", "runtime.evaluation_batch_size=7")
    assert evaluation.batch_size(cfg, torch.device(name)) == 7


def test_outputs_that_are_not_finite_are_no_predictions(tiny_cells, monkeypatch):
    def spoilt(run, loss, original=finetune.Run.finish_step):
        for parameter in run.training.trainable.values():
            parameter.data.fill_(float("nan"))
        original(run, loss)

    monkeypatch.setattr(finetune.Run, "finish_step", spoilt)
    cfg = one(tiny_cells, "task=rte", "protocol.max_steps=1", "protocol.evaluate_every=1")
    with pytest.raises(
        DivergedError, match=r"outputs are not finite: lower protocol.learning_rate"
    ):
        finetune.run(cfg)
    assert read_record(run_folder(cfg))["status"] == "failed"


def test_loss_that_is_not_finite_fails_the_run_with_a_record(tiny_cells):
    cfg = one(tiny_cells, "task=rte", "protocol.learning_rate=1e30", "protocol.max_grad_norm=1e30")
    with pytest.raises(DivergedError, match=r"The loss is \S+ at step 3: lower .* \(now 1e\+30\)"):
        finetune.run(cfg)
    record = read_record(run_folder(cfg))
    assert record["status"] == "failed"
    assert "lower protocol.learning_rate" in record["reason"]
    assert "test" not in record


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("step", [2, 6])
def test_gradient_that_is_not_finite_fails_the_run_with_a_record(
    tiny_cells, monkeypatch, value, step
):
    def spoilt(training, *rest, original=stepping.add_gradients):
        loss = original(training, *rest)
        if training.progress.step == step - 1:
            next(iter(training.trainable.values())).grad.fill_(float(value))
        return loss

    monkeypatch.setattr(stepping, "add_gradients", spoilt)
    cfg = one(tiny_cells, "task=rte")  # of six steps
    with pytest.raises(DivergedError, match=r"lower protocol.learning_rate"):
        finetune.run(cfg)
    assert read_record(run_folder(cfg))["status"] == "failed"


def test_deterministic_algorithms_are_on_where_asked_and_off_again(tiny_cells, monkeypatch):
    seen = []

    def watched(*arguments, original=finetune.Run.finish_step):
        seen.append(torch.are_deterministic_algorithms_enabled())
        original(*arguments)

    monkeypatch.setattr(finetune.Run, "finish_step", watched)
    for n, wanted in enumerate((True, False)):
        cfg = one(tiny_cells, "task=rte", f"seed={n}", f"runtime.deterministic={wanted}")
        assert finetune.run(cfg)["environment"]["deterministic"] is wanted
    assert seen == [True] * 6 + [False] * 6


def test_score_that_is_never_defined_fails_the_run(tiny_cells):
    cfg = one(tiny_cells, "task=cola", "protocol.learning_rate=0.0")
    with pytest.raises(UndefinedScore, match="matthews_correlation was undefined at every eval"):
        finetune.run(cfg)
    assert read_record(run_folder(cfg))["status"] == "failed"
    curve = pd.read_csv(run_folder(cfg) / "curve.csv")
    assert curve["matthews_correlation"].isna().all()


def test_saved_adapter_that_scores_otherwise_is_refused(tiny_cells, monkeypatch):
    cfg = one(tiny_cells, "task=stsb")
    original = selection.save_adapter

    def spoilt(model, folder):
        original(model, folder)
        from safetensors.torch import save_file

        path = folder / "adapter_model.safetensors"
        save_file({k: v * (-1) for k, v in load_file(path).items()}, path)

    monkeypatch.setattr(selection, "save_adapter", spoilt)
    with pytest.raises(RunFolderError, match="where training measured"):
        finetune.run(cfg)
    assert read_record(run_folder(cfg))["status"] == "failed"


@pytest.mark.parametrize(
    ("size", "change", "is_refused"), [(64, 0.001, True), (16, 0.001, False), (16, 0.1, True)]
)
def test_saved_adapter_may_score_otherwise_by_rounding_where_evaluation_had_other_batches(
    tiny_cells, monkeypatch, size, change, is_refused
):
    """A run stopped after training and continued: a metric of outputs moves when batches are rounded otherwise."""

    def stop(*_):
        raise DeviceError("no memory")

    with monkeypatch.context() as patch, pytest.raises(DeviceError):
        patch.setattr(evaluation, "test_saved", stop)
        finetune.run(one(tiny_cells, "task=rte"))

    def moved(*arguments, original=evaluation.test_saved):
        scores = original(*arguments)
        scores["validation"]["accuracy"] += change
        return scores

    monkeypatch.setattr(evaluation, "test_saved", moved)
    cfg = one(tiny_cells, "task=rte", f"runtime.evaluation_batch_size={size}")
    if is_refused:
        with pytest.raises(RunFolderError, match="where training measured"):
            finetune.run(cfg)
    else:
        assert finetune.run(cfg)["status"] == "done"


def test_examples_longer_than_the_backbone_are_refused_before_anything_is_written(done, tiny_cells):
    record = read_record(run_folder(done))
    with pytest.raises(ConfigError, match="set protocol.max_length=128"):
        finetune.run(one(tiny_cells, "task=rte", "protocol.max_length=512"))
    assert read_record(run_folder(done)) == record


def test_early_stopping_counts_evaluations(tiny_cells, monkeypatch):
    """Scores .5 .6 .6 .4 and patience 2: best at the second, stopped at the fourth."""
    scores = iter([0.5, 0.6, 0.6, 0.4])
    monkeypatch.setattr(selection, "score", lambda *_: {"accuracy": next(scores)})
    monkeypatch.setattr(finetune, "test_kept", lambda *_: {"test": {"accuracy": 0.0}})
    overrides = ["protocol.max_steps=30", "protocol.evaluate_every=3"]
    cfg = one(tiny_cells, "task=rte", "protocol.early_stopping_patience=2", *overrides)
    record = finetune.run(cfg)
    assert record["stopped_early"]
    assert (record["best"]["step"], record["steps"]) == (6, 12)


def test_epochs_and_evaluation_each_epoch(tiny_cells):
    overrides = ["protocol.max_steps=null", "protocol.epochs=2", "protocol.batch_size=600"]
    cfg = one(tiny_cells, "task=rte", "protocol.evaluate_every=null", *overrides)
    record = finetune.run(cfg)
    steps = math.ceil(record["data"]["counts"]["train"] / 600)
    curve = pd.read_csv(run_folder(cfg) / "curve.csv")
    assert curve["step"].tolist() == [steps, 2 * steps]
    assert record["train_examples_per_second"] > 0


def test_select_last_keeps_the_last_step(tiny_cells, monkeypatch):
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(selection, "score", lambda *_: {"accuracy": next(scores)})
    monkeypatch.setattr(finetune, "test_kept", lambda *_: {"test": {"accuracy": 0.0}})
    assert finetune.run(one(tiny_cells, "task=rte", "protocol.select=last"))["best"]["step"] == 6


@pytest.mark.parametrize("fleet", [False, *slow(True)])
def test_adapters_are_kept_at_the_steps_that_the_setting_names(tiny_cells, fleet):
    seeds = "seed=0,1" if fleet else "seed=0"
    cells = tiny_cells("runtime.keep_adapters_at=[0,2,6]", "protocol.select=last", seeds)
    finetune.run_together(cells)
    for cfg in cells:
        folder = run_folder(cfg)
        assert {p.name for p in folder.glob("adapter_at_*")} == {
            f"adapter_at_{n}" for n in (0, 2, 6)
        }
        at = {n: load_file(folder / f"adapter_at_{n}/adapter_model.safetensors") for n in (0, 2, 6)}
        assert same_tensors(at[6], adapter_of(cfg)) and not same_tensors(at[2], at[6])
        assert all(not t.any() for name, t in at[0].items() if "lora_B" in name)
        assert (folder / "adapter_at_0/adapter_config.json").is_file()


def test_standardised_targets_are_undone_in_the_predictions(tiny_cells):
    cfg = one(tiny_cells, "task=stsb")
    finetune.run(cfg)
    table = pd.read_parquet(run_folder(cfg) / "predictions_test.parquet")
    data = prepare(cfg)
    # After six steps of a random toy the predictions hover around the training mean, in STS-B's own scale.
    assert abs(table["prediction"].mean() - data.target_mean) < data.target_sd
    assert data.target_mean == pytest.approx(data.train.labels.mean().item())
    assert table["label"].between(0, 5).all()


@pytest.mark.parametrize("adapter", ["lora", "condlora"])
def test_analysis_reads_the_factors_of_a_run(finished_cells, adapter):
    cfg = one(finished_cells, "task=rte", *(["adapter=lora"] if adapter == "lora" else []))
    factors = load_factors(run_folder(cfg))
    assert sorted(factors) == ["query", "value"]
    for f in factors.values():
        assert (f.W.shape, f.A.shape, f.B.shape) == ((3, 16, 16), (3, 8, 16), (3, 16, 8))
        assert f.layers == [0, 1, 2]
        assert f.B.abs().max() > 0  # trained
    saved = adapter_of(cfg)
    if adapter == "condlora":
        theta = saved["base_model.model.bert.encoder.layer.0.attention.self.value.condlora_theta_A"]
        assert torch.allclose(factors["value"].A[1], theta @ factors["value"].W[1].T)


def test_tracker_that_is_not_installed_is_said(tiny_cells, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    cfg = one(tiny_cells, "task=rte", "runtime.trackers=[tensorboard]")
    with pytest.raises(ConfigError, match="one is not installed"):
        finetune.run(cfg)
    assert not run_folder(cfg).exists()


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({"evaluate_every": 1500}, 300),  # an epoch
        ({"evaluate_every": None}, 300),
        ({"evaluate_every": 20}, 20),
        ({"evaluate_every": None, "evaluations": 10}, 480),  # more than an epoch
    ],
)
def test_evaluations_come_by_steps_or_as_equal_parts_of_the_run(settings, interval):
    assert setup.evaluation_interval(OmegaConf.create(settings), 300, 4800) == interval


def test_a_run_that_has_no_equal_parts_is_refused(tiny_cells):
    (cfg,) = tiny_cells("task=rte", "+protocol.evaluations=4")
    with pytest.raises(ConfigError, match="evaluations=4 does not divide the run's 6 steps"):
        finetune.run(cfg)
    (cfg,) = tiny_cells("task=rte", "+protocol.evaluations=2")
    finetune.run(cfg)
    assert pd.read_csv(run_folder(cfg) / "curve.csv")["step"].tolist() == [3, 6]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        pytest.param("ACCELERATE_MIXED_PRECISION", "bf16", marks=pytest.mark.slow),
        pytest.param("ACCELERATE_DYNAMO_BACKEND", "EAGER", marks=pytest.mark.slow),
    ],
)
def test_variables_that_accelerate_reads_change_no_weight(
    tiny_cells, tmp_path, monkeypatch, name, value
):
    plain, changed = (
        one(tiny_cells, "task=rte", "protocol.precision=no", f"runs={tmp_path}/{n}") for n in "ab"
    )
    finetune.run(plain)
    monkeypatch.setenv(name, value)
    finetune.run(changed)
    assert same_tensors(adapter_of(plain), adapter_of(changed))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "ACCELERATE_USE_DEEPSPEED is set .*: unset it"),
        ("ACCELERATE_USE_FSDP", "true", "ACCELERATE_USE_FSDP is set .*: unset it"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "ACCELERATE_USE_MEGATRON_LM is set .*: unset it"),
        ("ACCELERATE_TORCH_DEVICE", "meta", "makes accelerate use meta: unset"),
    ],
)
def test_variables_that_ask_accelerate_for_another_step_or_device_are_refused(
    tiny_cells, monkeypatch, name, value, message
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        device.make_accelerator(one(tiny_cells, "task=rte", "runtime.device=cpu"))


def test_adapter_that_cannot_be_written_fails_the_run_with_a_sentence(tiny_cells, monkeypatch):
    def full(model, path):
        path.mkdir()
        with small_files():
            save_file({"weight": torch.zeros(10_000)}, path / "adapter_model.safetensors")

    monkeypatch.setattr(selection, "save_adapter", full)
    cfg = one(tiny_cells, "task=rte")
    with pytest.raises(RunFolderError, match=r"cannot be written .*: free some space on the disk"):
        finetune.run(cfg)
    assert read_record(run_folder(cfg))["status"] == "failed"
