"""Folders and paths as users have them: copies, strangers, several spellings of one place, paths with blanks."""

import shutil

import pytest
from hydra import compose

from condlora.commands import cli
from condlora.errors import ConfigError, RunFolderError
from condlora.grid import cells, composition, listing, preflight, watch
from condlora.runs.lease import Claim
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import (
    finished_record,
    read_cell_record,
    run_folder,
)


@pytest.mark.parametrize(
    ("copy", "says"),
    [
        ("rte/lora/seed-7", r"the record of another run \(seed 0\)"),
        ("rte/condlora/seed-0", r"the record of another run \(adapter lora\)"),
        ("mrpc/lora/seed-0", r"the record of another run \(task rte\)"),
        ("mrpc/lora/seed-3", r"the record of another run \(task rte, seed 0\)"),
    ],
)
def test_a_copied_run_is_no_run_of_its_new_place(finished, tmp_path, copy, says):
    cfg = finished()
    folder = tmp_path / "runs/adhoc" / copy
    shutil.copytree(run_folder(cfg), folder)
    with pytest.raises(RunFolderError, match=rf"{copy}/record.json is {says}: move this copy"):
        read_cell_record(folder)
    states = {c.folder: (c.state, c.reason) for c in listing.survey("adhoc", tmp_path / "runs")}
    assert states[run_folder(cfg)][0] == "done"
    assert states[folder][0] == "damaged" and copy in states[folder][1]
    assert finished_record(folder, recipe_hash(recipe(cfg))) is None


def test_a_profile_that_was_copied_is_none_of_its_new_name(finished, tmp_path):
    run_folder(finished())
    shutil.copytree(tmp_path / "runs/adhoc", tmp_path / "runs/paper")
    with pytest.raises(RunFolderError, match=r"of another run \(profile adhoc\)"):
        read_cell_record(tmp_path / "runs/paper/rte/lora/seed-0")
    assert listing.newest_profile(tmp_path / "runs") == "adhoc"


@pytest.mark.parametrize(
    "name", ["seed-0-backup", "seed-0.stale-12345678", "seed-0 (copy)", "seed-"]
)
def test_strangers_beside_the_runs_are_skipped(finished, tmp_path, name):
    cfg = finished()
    shutil.copytree(run_folder(cfg), run_folder(cfg).with_name(name))
    (cell,) = listing.survey("adhoc", tmp_path / "runs")
    assert (cell.seed, cell.state) == (0, "done")
    assert listing.newest_profile(tmp_path / "runs") == "adhoc"


def test_listing_reads_records_alone_and_the_analysis_verifies_files(finished, tmp_path):
    cfg = finished()
    path = run_folder(cfg) / "adapter/adapter_model.safetensors"
    path.write_text("adapter/another.safetensors....."[: path.stat().st_size])
    assert cells.inspect(cfg).state == "done"
    (cell,) = listing.survey("adhoc", tmp_path / "runs")
    assert cell.state == "damaged" and "was changed or damaged" in cell.reason
    assert finished_record(run_folder(cfg), recipe_hash(recipe(cfg))) is None


@pytest.mark.parametrize("other", ["m/", "../here/m", "./m", "link", "renamed", "ABSOLUTE"])
def test_one_backbone_folder_has_one_recipe_however_it_is_written(
    tiny_cells, tmp_path, monkeypatch, other
):
    here = tmp_path / "here"
    (here / "m").mkdir(parents=True)
    (here / "m/config.json").write_text("{}")
    (here / "link").symlink_to("m")
    shutil.copytree(here / "m", here / "renamed")
    monkeypatch.chdir(here)

    def digest(path):
        (cfg,) = tiny_cells("task=rte", "backbone=folder", f"backbone.path={path}")
        return recipe_hash(recipe(cfg))

    before = digest("m")
    assert digest(str(here / "m") if other == "ABSOLUTE" else other) == before
    (here / "m/config.json").write_text('{"another": 1}')
    assert digest("m") != before


@pytest.mark.parametrize("runs", ["a (1)", "with blank", "comma,here", "dollar$", "bracket[0]"])
def test_a_profile_is_read_from_any_folder(tmp_path, runs):
    planned = cells.plan_cells(("profile=embedded", "task=rte", "seed=0"), tmp_path / runs)
    assert [cell.folder for cell in planned] == [
        tmp_path / runs / "embedded/rte" / adapter / "seed-0" for adapter in ("lora", "condlora")
    ]


@pytest.mark.parametrize("word", ["runs=x/${now:%H-%M-%S}", "runs=${now:%Y}/${now:%j}", "a=b"])
def test_the_time_in_a_setting_is_put_in_once(word):
    once = cli._with_time(word)
    assert "now" not in once and (once == word) == ("now" not in word)


def test_a_config_whose_runs_folder_holds_the_time_is_refused():
    words = ["backbone=minilm", "data=synthetic", "protocol=embedded"]
    with pytest.raises(ConfigError, match=r"runs has the time in it"):
        preflight.preflight([*words, "runs=x/${now:%S}"])


@pytest.mark.parametrize("runs", ["file", "file/below", "file/far/below"])
def test_runs_that_cannot_be_a_folder_are_refused(tmp_path, runs):
    (tmp_path / "file").write_text("")
    words = ["backbone=minilm", "data=synthetic", "protocol=embedded", f"runs={tmp_path}/{runs}"]
    with pytest.raises(ConfigError, match="file is a file: choose a folder with runs="):
        preflight.preflight(words)


def test_a_run_that_failed_before_it_had_a_record_is_not_done_again(tiny_cells, monkeypatch):
    (cfg,) = tiny_cells("task=rte")
    monkeypatch.setattr(watch, "compose_cells", lambda _: (cfg,))
    with pytest.raises(ConfigError), Claim(run_folder(cfg)):
        raise ConfigError("a tracker that is not installed")
    assert list(watch.left_by_others([])) == []


@pytest.mark.slow
def test_cells_are_planned_as_hydra_composes_each(tmp_path):
    """Tasks and adapters that are composed in one go and put together give what Hydra composes for each run."""
    common, tasks = ("profile=kinship", f"runs={tmp_path}"), ("cola", "stsb")
    adapters = ("vera", "condlora_rslora", "share_lora_ab_r", "lora")
    words = (f"task={','.join(tasks)}", f"adapter={','.join(adapters)}", "seed=0")
    with composition.composing():
        expected = [
            cells.planned(compose("train", [*common, f"task={task}", f"adapter={adapter}"]))
            for task in tasks
            for adapter in adapters
        ]
    assert list(cells.plan_cells((*common, *words))) == expected
    # A value within a group that differs from run to run is set in each run's own choice of the group.
    words = ("task=cola", "adapter=lora,vera", "adapter.config.r=2,4", "seed=0")
    found = [
        (cfg.adapter.name, cfg.adapter.config.r) for cfg in cells.compose_cells((*common, *words))
    ]
    assert found == [("lora", 2), ("lora", 4), ("vera", 2), ("vera", 4)]
