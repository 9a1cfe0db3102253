"""The model card, and pushing and loading through the hub's own client against a stand-in on this machine."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from huggingface_hub import HfApi, RepoUrl
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from condlora import CondLoraConfig
from condlora.errors import AdapterError, NetworkError, RunFolderError
from condlora.models.run_facts import run_facts
from condlora.runs.record import SCHEMA_VERSION, write_record
from condlora.tuner.io.card import Facts, model_card, push_to_hub

TOKENS = torch.arange(1, 25).reshape(3, 8)
COMMIT = "0" * 40
PUSHED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "lora/adapter_config.json",
    "lora/adapter_model.safetensors",
}

# PEFT looks for the base model's config, which is nowhere here.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")


@pytest.fixture
def adapted(tiny_bert):
    """A function (base name, **settings) -> an adapted classifier of three labels, nothing at its start value."""

    def build(base="me/base", adapter_name="default", **settings):
        model = tiny_bert()
        model.name_or_path = model.config._name_or_path = base
        settings = {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["query", "value"],
            "task_type": "SEQ_CLS",
        } | settings
        model = get_peft_model(model, CondLoraConfig(**settings), adapter_name=adapter_name)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return build


def front_matter(card):
    match = re.match(r"---\n(.*?)\n---\n", str(card), re.DOTALL)
    return yaml.safe_load(match[1])


def rows(card):
    return {
        line.split(" | ")[0].lstrip("| "): line for line in str(card).splitlines() if "|" in line
    }


def test_card_says_base_task_form_parameters_and_scores_over_seeds(adapted):
    facts = Facts(
        task="RTE",
        scores={"accuracy": {0: 0.5, 2: 0.75, 1: 0.625}, "f1": {0: 0.25}},
        seed=2,
        license="mit",
    )
    model = adapted(form="consistent", rank_pattern={"query": 2})
    card = model_card(model, "me/adapter", facts)
    data = front_matter(card)
    assert data["base_model"] == "me/base"
    assert data["library_name"] == "peft"
    assert data["license"] == "mit"
    assert data["metrics"] == ["accuracy", "f1"]
    assert "condlora" in data["tags"]
    found = rows(card)
    assert found["accuracy"] == "| accuracy | 0.6250 | 0.1250 | 3 | 0, 1, 2 |"
    assert found["f1"] == "| f1 | 0.2500 | – | 1 | 0 |"
    for name, value in {
        "task": "RTE",
        "form": "consistent",
        "r": "4, query: 2",
        "alpha": "8",
        "target modules": "query, value",
        "trained whole": "classifier",
        "seed": "2",
        # maps 2 x 2 x 16 for query and 2 x 4 x 16 for value; head 3 x 16 + 3
        "trainable parameters": "243: 192 in the maps, 51 in heads and biases",
    }.items():
        assert found[name] == f"| {name} | {value} |"


def test_card_says_how_many_layers_share_a_pair(adapted):
    assert "layers that share a pair" not in rows(model_card(adapted(), "me/adapter"))
    found = rows(model_card(adapted(layers_per_map=2), "me/adapter"))
    assert found["layers that share a pair"] == "| layers that share a pair | 2 |"


def test_card_of_nothing_but_a_model_claims_nothing_more(adapted):
    card = model_card(adapted(base=""), "adapter")
    assert front_matter(card) == {"library_name": "peft", "tags": ["condlora"]}
    assert "Scores" not in str(card)
    assert "| task |" not in str(card)


HOSTILE = "a: [b\n---\nlicense: mit\n# |<b>```\n{c: 'd"


def test_what_a_user_says_stays_data_in_the_card(adapted):
    facts = Facts(task=HOSTILE, scores={HOSTILE: {0: 1.0}}, license=HOSTILE)
    card = model_card(adapted(base=HOSTILE), HOSTILE, facts, has_lora=True)
    data = front_matter(card)
    assert (data["base_model"], data["license"], data["metrics"]) == (HOSTILE, HOSTILE, [HOSTILE])
    assert set(data) == {"base_model", "library_name", "license", "metrics", "tags"}
    body = str(card).split("\n---\n", 1)[1]
    assert "<b>" not in re.sub(r"```python.*?```", "", body, flags=re.DOTALL)
    blocks = re.findall(r"^```python\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    assert body.count("\n```") == 4
    for block in blocks:
        names = [node for node in re.findall(r"from_pretrained\((.*?)[,)]", block)]
        assert len(names) == 2
        compile(block, "card", "exec")


@pytest.mark.parametrize("scores", [{}, {0: float("nan")}])
def test_a_metric_without_a_number_is_refused(scores):
    with pytest.raises(AdapterError, match="give each seed a number"):
        Facts(scores={"accuracy": scores})


def test_card_and_push_need_a_condlora_adapter(adapted, tiny_bert):
    for make in (model_card, push_to_hub):
        with pytest.raises(AdapterError, match="no CondLoRA adapter"):
            make(tiny_bert(), "me/adapter")
        with pytest.raises(AdapterError, match="no adapter 'other'"):
            make(adapted(), "me/adapter", adapter_name="other")


def test_peft_keeps_a_cards_text_when_it_saves_beside_it_but_rewrites_its_tags(adapted, tmp_path):
    """Why `push_to_hub` writes the card last."""
    model = adapted()
    card = model_card(model, "me/adapter", Facts(task="RTE", license="mit"))
    card.save(tmp_path / "README.md")
    model.save_pretrained(str(tmp_path))
    kept = (tmp_path / "README.md").read_text()
    assert "| task | RTE |" in kept
    data = yaml.safe_load(kept.split("---\n")[1])
    assert (data["license"], data["base_model"]) == ("mit", "me/base")
    assert "condlora" not in data["tags"]


def write_run(folder, seed, *, accuracy, recipe_hash="a", status="done"):
    run = folder / f"seed-{seed}"
    (run / "adapter").mkdir(parents=True)
    for name in (
        "config.yaml",
        "curve.csv",
        "predictions_validation.parquet",
        "predictions_test.parquet",
    ):
        (run / name).touch()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run / "adapter" / name).touch()
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "recipe_hash": recipe_hash,
        "seed": seed,
        "recipe": {"task": {"title": "RTE"}},
        "data": {"source": "synthetic"},
        "test": {"accuracy": accuracy},
    }
    write_record(run, record)
    return run


def test_facts_of_a_run_are_its_record_and_those_of_its_recipes_other_seeds(tmp_path):
    run = write_run(tmp_path, 0, accuracy=0.5)
    write_run(tmp_path, 1, accuracy=0.75)
    write_run(tmp_path, 2, accuracy=0.9, recipe_hash="b")
    unfinished = write_run(tmp_path, 3, accuracy=0.9, status="running")
    facts = run_facts(run, license="mit")
    assert facts == Facts("RTE (synthetic data)", {"accuracy": {0: 0.5, 1: 0.75}}, 0, "mit")
    with pytest.raises(RunFolderError, match="is running"):
        run_facts(unfinished)


def test_a_base_that_only_this_machine_has_is_not_published(adapted, tmp_path):
    with pytest.raises(AdapterError, match="nobody else has"):
        push_to_hub(adapted(base=str(tmp_path)), "me/adapter")


def test_a_hub_that_cannot_be_reached_is_said_in_a_sentence(adapted, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("condlora.tuner.io.card.HfApi.create_repo", refuse)
    with pytest.raises(NetworkError, match=r"me/adapter could not be pushed \(no route\)"):
        push_to_hub(adapted(), "me/adapter")


def test_an_adapter_of_another_name_is_pushed_to_the_repositorys_top(adapted, monkeypatch):
    pushed = {}

    def upload_folder(self, *, repo_id, folder_path, **options):
        for path in folder_path.rglob("*.*"):
            pushed[str(path.relative_to(folder_path))] = path.read_text(errors="replace")

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **options: RepoUrl(f"me/{repo_id}")
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    push_to_hub(adapted(adapter_name="other"), "adapter", Facts(task="RTE"), adapter_name="other")
    assert set(pushed) == PUSHED
    assert "| task | RTE |" in pushed["README.md"]
    assert 'from_pretrained(base, "me/adapter")' in pushed["README.md"]


class StandIn(BaseHTTPRequestHandler):
    """The few endpoints of the hub that pushing and loading a small model use; `files` is what it stores."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, answer):
        self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            sent = json.loads(body)
            repo = f"{sent.get('organization') or 'me'}/{sent['name']}"
            self.server.private[repo] = sent.get("visibility") == "private"
            return self.say({"url": f"{self.server.url}/{repo}"})
        if self.path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        repo, action = re.match(r"/api/models/([^/]+/[^/]+)/(\w+)/", self.path).groups()
        if action == "preupload":
            files = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.say({"files": [{"path": file["path"], **mode} for file in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[repo, line["value"]["path"]] = content
        self.say({"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self):
        found = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path)
        content = self.server.files.get(found.groups()) if found else None
        self.server.asked.append(self.path)
        if content is None:
            siblings = [{"rfilename": path} for _, path in self.server.files]
            if re.fullmatch(r"/api/models/[^/]+/[^/]+(/revision/\w+)?(\?.*)?", self.path):
                return self.say({"id": "me/x", "sha": COMMIT, "siblings": siblings})
            return self.reply(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        etag = hashlib.sha1(content).hexdigest()
        self.reply(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture
def hub(tiny_bert, tmp_path):
    """The stand-in, with the base model me/base in it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.private, server.asked = {}, {}, []
    base = tmp_path / "base"
    tiny_bert().save_pretrained(base)
    for path in base.iterdir():
        server.files["me/base", path.name] = path.read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# What a user does, in a process that can connect to nothing but the stand-in.
USER = """
import json, re, socket, sys

connect = socket.socket.connect
def only_here(self, address):
    if address[:1] != ("127.0.0.1",):
        sys.exit(f"connects to {address}")
    return connect(self, address)
socket.socket.connect = only_here
socket.getaddrinfo = lambda host, port, *rest, **named: (
    [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
    if host == "127.0.0.1" else sys.exit(f"looks up {host}")
)
import torch
from safetensors.torch import load_file, save_file
from condlora.tuner.io.adapter_folder import load_adapted
from condlora.tuner.io.card import Facts, push_to_hub
from huggingface_hub import ModelCard

tokens = load_file("tokens.safetensors")["tokens"]
@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=tokens).logits

found = {}
model = load_adapted("adapter", base="me/base")
model.peft_config["default"].base_model_name_or_path = "me/base"
found["trained"] = logits(model)
push_to_hub(model, "adapter", Facts(task="RTE", scores={"accuracy": {0: 0.5}}), private=True)
card = ModelCard.load("me/adapter")
for name, block in zip(("own", "lora"), re.findall(r"```python\\n(.*?)```", card.text, re.DOTALL), strict=True):
    names = {}
    exec(block, names)
    found[name] = logits(names["model"])
    found[name + ".is_" + names["model"].peft_config["default"].peft_type.value.lower()] = torch.ones(1)
model.push_to_hub("me/peft")
from peft import AutoPeftModelForSequenceClassification
found["peft"] = logits(AutoPeftModelForSequenceClassification.from_pretrained("me/peft", num_labels=3))
save_file(found, "found.safetensors")
"""


@pytest.mark.slow
def test_pushed_adapter_loads_back_as_its_card_says_with_and_without_condlora(
    hub, adapted, tmp_path
):
    model = adapted(modules_to_save=["classifier"])
    model.save_pretrained(str(tmp_path / "adapter"))
    save_file({"tokens": TOKENS}, tmp_path / "tokens.safetensors")
    hub_settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USER],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        | hub_settings,
        check=True,
    )
    found = load_file(tmp_path / "found.safetensors")
    with torch.no_grad():
        want = model(input_ids=TOKENS).logits
    for name in ("trained", "own", "lora", "peft"):
        torch.testing.assert_close(found[name], want, rtol=0, atol=1e-6)
    assert {"own.is_condlora", "lora.is_lora"} <= set(found)
    assert hub.private["me/adapter"] is True
    assert {path for repo, path in hub.files if repo == "me/adapter"} == PUSHED
    card = hub.files["me/adapter", "README.md"].decode()
    assert front_matter(card)["base_model"] == "me/base"
    assert rows(card)["accuracy"] == "| accuracy | 0.5000 | – | 1 | 0 |"
    for content in hub.files.values():
        assert str(tmp_path).encode() not in content
