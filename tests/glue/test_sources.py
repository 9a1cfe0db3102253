"""The three sources: a GLUE download folder with its quirks, save_to_disk, the hub (a stand-in), and ours."""

import datasets
import pytest
from omegaconf import OmegaConf

from condlora.errors import ConfigError, DataError, NetworkError
from condlora.glue.sources import data_folder, load_text
from condlora.glue.splits import make_splits, split_sha256
from condlora.glue.tasks import Task
from condlora.runs.settings import check_settings
from tests.tasks import GLUE_TASKS, ROOT, load_task

REAL = ROOT.parent / "shared" / "glue_data"
# Rows of train and dev, and of train's label 1; its QNLI is another split than GLUE's. STS-B's scores have none.
REAL_ROWS = {
    "cola": (8551, 1043, 6023),
    "mrpc": (3668, 408, 2474),
    "qnli": (4463, 1000, 2258),
    "rte": (2490, 277, 1241),
    "sst2": (67349, 872, 37569),
    "stsb": (5749, 1500, None),
}


def directory(root):
    return OmegaConf.create({"source": "directory", "root": str(root)})


def write(folder, name, text, encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode(encoding))


SYNTHETIC = OmegaConf.create({"source": "synthetic", "seed": 0, "train_rows": 60, "test_rows": 20})


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_synthetic_has_the_columns_and_splits_of_glue(name):
    task = load_task(name)
    text = load_text(SYNTHETIC, task)
    assert {"train", *task.test_splits} <= set(text)
    assert {*task.fields, "label"} <= set(text["train"].column_names)


def test_synthetic_has_the_number_of_rows_that_is_asked_for():
    text = load_text(SYNTHETIC, load_task("mnli"))
    assert {name: len(split) for name, split in text.items()} == {
        "train": 60, "validation_matched": 20, "validation_mismatched": 20,
    }  # fmt: skip


def test_a_number_of_rows_is_refused_for_text_that_is_not_generated(tiny_cells):
    (cfg,) = tiny_cells("task=rte", "data=directory", "data.root=x", "+data.train_rows=30")
    with pytest.raises(ConfigError, match="apply only to data=synthetic: leave them out"):
        check_settings(cfg)


needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="no GLUE download folder: the data are not part of the repository"
)


@needs_real
@pytest.mark.parametrize("name", REAL_ROWS)
def test_every_row_of_a_real_download_folder_is_read(name):
    task, (train, dev, positive) = load_task(name), REAL_ROWS[name]
    text = load_text(directory(REAL), task)
    assert (len(text["train"]), len(text["validation"])) == (train, dev)
    if name != "qnli":
        assert train == task.official_rows["train"]
        assert dev == task.official_rows["test"]["validation"]
    if positive is not None:
        assert sum(text["train"]["label"][:]) == positive
    splits = make_splits(text, task, "tenth_of_train")
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (train, dev)


@needs_real
@pytest.mark.parametrize(
    ("folder", "fields", "label", "rows"),
    [
        ("WNLI", ("sentence1", "sentence2"), "label", 635),
        ("MRPC", ("#1 String", "#2 String"), "Quality", 3668),
        ("RTE", ("sentence1", "sentence2"), "label", 2490),
    ],
)
def test_every_row_of_a_real_file_is_read_as_a_file_of_the_users(folder, fields, label, rows):
    names = ("entailment", "not_entailment") if folder == "RTE" else ("0", "1")
    task = Task("own", "own", fields, names, ("accuracy",), "accuracy", ("test",), None, label)
    path = str(REAL / folder / "train.tsv")
    data = {"source": "files", "train": path, "validation": None, "test": path, "quoting": "none"}
    assert len(load_text(OmegaConf.create(data), task)["train"]) == rows


def test_cola_has_no_header_and_lone_quotes_stand(tmp_path):
    rows = "gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\t\"One more pseudo.\x12\n"
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "CoLA", name, rows)
    text = load_text(directory(tmp_path), load_task("cola"))
    assert text["train"]["sentence"][:] == ["Our friends won't buy this.", '"One more pseudo.\x12']
    assert text["train"]["label"][:] == [1, 0]


def test_byte_order_mark_windows_line_ends_and_words_as_labels(tmp_path):
    rows = (
        "index\tsentence1\tsentence2\tlabel\r\n0\ta\tb\tentailment\r\n1\tc\td\tnot_entailment\r\n"
    )
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "RTE", name, rows, encoding="utf-8-sig")
    text = load_text(directory(tmp_path), load_task("rte"))
    assert text["validation"].to_dict() == {
        "sentence1": ["a", "c"],
        "sentence2": ["b", "d"],
        "label": [0, 1],
    }


def test_qqp_rows_cut_off_in_mid_line_are_left_out(tmp_path):
    rows = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta?\tb?\t1\n4\t5\tbroken\n6\t7\t8\tc?\td?\t0\n"
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "QQP", name, rows)
    assert len(load_text(directory(tmp_path), load_task("qqp"))["train"]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("sentence\tlabel\nfine\t1\nbad\t7\n", r"train.tsv, line 3: '7' is no label of SST-2"),
        ("sentence\tlabel\nfine\n", r"train.tsv, line 2 has 1 of 2 columns"),
        ("text\tlabel\nfine\t1\n", r"train.tsv, line 1: there is no column 'sentence'"),
        ("sentence\tlabel\n", r"split 'train' of sst2 is empty"),
    ],
)
def test_malformed_file_is_named_with_its_line(tmp_path, rows, message):
    write(tmp_path / "SST-2", "train.tsv", rows)
    write(tmp_path / "SST-2", "dev.tsv", "sentence\tlabel\nfine\t1\n")
    with pytest.raises(DataError, match=message):
        load_text(directory(tmp_path), load_task("sst2"))


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path):
    write(tmp_path / "SST-2", "train.tsv", "sentence\tlabel\nfine\t1\ncafé\t0\n", "latin-1")
    with pytest.raises(DataError, match=r"train.tsv, line 3 is not UTF-8"):
        load_text(directory(tmp_path), load_task("sst2"))


@pytest.mark.parametrize("score", ["5.1", "high", "nan"])
def test_stsb_scores_are_numbers_from_0_to_5(tmp_path, score):
    write(tmp_path / "STS-B", "train.tsv", f"sentence1\tsentence2\tscore\na\tb\t{score}\n")
    with pytest.raises(DataError, match="not a score from 0 to 5"):
        load_text(directory(tmp_path), load_task("stsb"))


def test_missing_file_and_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"RTE/train.tsv is missing"):
        load_text(directory(tmp_path), load_task("rte"))
    with pytest.raises(DataError, match="does not exist: set data.root"):
        load_text(directory(tmp_path / "nowhere"), load_task("rte"))


def test_save_to_disk_folder(tmp_path):
    text = load_text(SYNTHETIC, load_task("rte"))
    text.save_to_disk(str(tmp_path / "rte"))
    loaded = load_text(directory(tmp_path), load_task("rte"))
    assert loaded["train"].to_dict() == text["train"].to_dict()


HUB = OmegaConf.create(
    {"source": "hub", "dataset": "nyu-mll/glue", "revision": "bcdcba79" + "0" * 32}
)


def test_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []
    text = load_text(SYNTHETIC, load_task("cola"))

    def stand_in(*names, revision):
        asked.append((*names, revision))
        return text

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    assert load_text(HUB, load_task("cola")) is text
    assert asked == [("nyu-mll/glue", "cola", HUB.revision)]


def test_no_network_is_said(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(NetworkError, match="use data=directory or data=synthetic"):
        load_text(HUB, load_task("cola"))


def rows(n, labels=(0, 1)):
    return datasets.Dataset.from_dict(
        {
            "sentence": [f"s{i}" for i in range(n)],
            "label": [labels[i % len(labels)] for i in range(n)],
        }
    )


def test_split_is_the_authors():
    """Their src/data/load_dataset.py: shuffle with seed 1, the first tenth is validation."""
    text = datasets.DatasetDict(train=rows(96), validation=rows(10))
    splits = make_splits(text, load_task("sst2"), "tenth_of_train")
    shuffled = text["train"].shuffle(seed=1)["sentence"][:]
    assert splits.validation["sentence"][:] == shuffled[:10]
    assert splits.train["sentence"][:] == shuffled[10:]
    assert splits.test["sentence"][:] == text["validation"]["sentence"][:]


def test_limited_validation_is_the_first_of_the_tenth_and_trains_on_nothing_more():
    text = datasets.DatasetDict(train=rows(96), validation=rows(10))
    whole, limited = (
        make_splits(text, load_task("sst2"), "tenth_of_train", limit) for limit in (None, 9)
    )
    assert limited.validation["sentence"][:] == whole.validation["sentence"][:9]
    assert limited.train["sentence"][:] == whole.train["sentence"][:]
    assert limited.test["sentence"][:] == whole.test["sentence"][:]
    more = make_splits(text, load_task("sst2"), "tenth_of_train", 1000)
    assert len(more.validation) == len(whole.validation)


@pytest.mark.parametrize(("validation", "limit"), [("tenth_of_train", 0), ("test", 4)])
def test_limit_that_does_not_fit_is_refused(validation, limit):
    text = datasets.DatasetDict(train=rows(20), validation=rows(10))
    with pytest.raises(ConfigError, match=f"validation_limit is {limit}"):
        make_splits(text, load_task("sst2"), validation, limit)


def test_further_test_rows_are_those_after_the_tenth_and_are_not_trained_on():
    text = datasets.DatasetDict(train=rows(96), validation=rows(10))
    whole = make_splits(text, load_task("sst2"), "tenth_of_train")
    more = make_splits(text, load_task("sst2"), "tenth_of_train", test_rows_from_train=20)
    assert more.validation["sentence"][:] == whole.validation["sentence"][:]
    assert more.train["sentence"][:] == whole.train["sentence"][20:]
    assert more.test["sentence"][:] == whole.test["sentence"][:] + whole.train["sentence"][:20]
    assert more.test_part == 10 * ["validation"] + 20 * ["held_out"]


@pytest.mark.parametrize(("validation", "number"), [("tenth_of_train", 0), ("test", 4)])
def test_further_test_rows_that_do_not_fit_are_refused(validation, number):
    text = datasets.DatasetDict(train=rows(20), validation=rows(10))
    with pytest.raises(ConfigError, match=f"test_rows_from_train is {number}"):
        make_splits(text, load_task("sst2"), validation, test_rows_from_train=number)
    with pytest.raises(ConfigError, match="sst2 has 20 training rows: give fewer"):
        make_splits(text, load_task("sst2"), "tenth_of_train", test_rows_from_train=18)


def test_second_recipe_holds_nothing_out():
    text = datasets.DatasetDict(train=rows(20), validation=rows(10))
    splits = make_splits(text, load_task("sst2"), "test")
    assert len(splits.train) == 20
    assert splits.validation["sentence"][:] == splits.test["sentence"][:]


def test_mnli_test_set_is_matched_then_mismatched():
    text = load_text(SYNTHETIC, load_task("mnli"))
    splits = make_splits(text, load_task("mnli"), "tenth_of_train")
    matched = len(text["validation_matched"])
    assert splits.test["premise"][:matched] == text["validation_matched"]["premise"][:]
    assert splits.test_part[matched - 1 : matched + 1] == [
        "validation_matched",
        "validation_mismatched",
    ]


def test_hidden_and_single_labels_are_refused():
    hidden = datasets.DatasetDict(train=rows(20), validation=rows(10, labels=(-1,)))
    with pytest.raises(DataError, match="without public labels"):
        make_splits(hidden, load_task("sst2"), "tenth_of_train")
    single = datasets.DatasetDict(train=rows(20, labels=(1,)), validation=rows(10))
    with pytest.raises(DataError, match="have one label"):
        make_splits(single, load_task("sst2"), "tenth_of_train")


def test_split_hash_follows_text_label_and_order():
    task, base = load_task("sst2"), rows(6)
    same = split_sha256(rows(6), task)
    assert split_sha256(base, task) == same
    assert split_sha256(base.select([1, 0, 2, 3, 4, 5]), task) != same
    assert split_sha256(rows(6, labels=(1, 0)), task) != same


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (None, r"data.root is not set: add data.root=.* or set GLUE_DATA="),
        ("/nowhere", "does not exist"),
    ],
)
def test_data_folder_that_is_not_set_or_not_there_is_said(root, message):
    with pytest.raises(DataError, match=message):
        data_folder(OmegaConf.create({"source": "directory", "root": root}))
