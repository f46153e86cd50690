"""What can be wrong with a --ckpt, each with a message of its own; and nothing of a file is ever run."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from _txt2img import CONFIG
from safetensors.torch import save_file

from ldm.util import instantiate_from_config


class CallsOs:
    """Pickles as a call that makes a folder: the canary."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"mkdir '{self.path}'",)


def truncated(path):
    save_file({"weight": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:-1000])


def lying_header(path):
    save_file({"weight": torch.zeros(4, 4)}, path)
    path.write_bytes(path.read_bytes().replace(b"[4,4]", b"[4,9]"))


def folder(path):
    path.mkdir()
    (path / "unet").mkdir()


def calls_os(path):
    torch.save({"state_dict": {"weight": CallsOs(path.parent / "canary")}}, path)


def calls_os_deep_in_a_trainers_state(path):
    state = instantiate_from_config(CONFIG["model"]).state_dict()
    torch.save({"state_dict": state, "callbacks": {"x": [CallsOs(path.parent / "canary")]}}, path)


def another_architecture(path):
    names = ["conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.label_emb.0.0.weight"]
    save_file({name: torch.zeros(2) for name in names}, path)


def a_lora(path):
    save_file({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 2)}, path)


def not_torchs_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")


def part_of_a_pipeline(path):
    path.mkdir()
    (path.parent / "model_index.json").write_text("{}")
    (path / "diffusion_pytorch_model.safetensors").write_bytes(b"x")


WRONG = {
    "truncated.safetensors": (truncated, "truncated"),
    "empty.ckpt": (lambda path: path.write_bytes(b""), "is empty"),
    "text.ckpt": (lambda path: path.write_text("<!DOCTYPE html><html>404</html>"), "text|HTML|web page"),
    "calls.ckpt": (calls_os, "would run os.system"),
    "deep.ckpt": (calls_os_deep_in_a_trainers_state, "would run os.system"),
    "hidden.safetensors": (calls_os, "would run os.system"),
    "lying.safetensors": (lying_header, "64 bytes|144 bytes|header"),
    "sdxl.safetensors": (another_architecture, "SDXL"),
    "lora.safetensors": (a_lora, "LoRA"),
    "missing.ckpt": (lambda path: None, "does not exist"),
    "folder": (folder, "model_index.json"),
    "zip.ckpt": (not_torchs_zip, "zip"),
}


DESCRIPTIONS = {  # what describes a model and is taken for it; some have a message together
    "model_index.json": (lambda path: path.write_text('{"_class": {"a": 1}}'), "folder that model_index.json is in"),
    "braces.json": (lambda path: path.write_text('{"abcd":{}}'), "is JSON, which only describes a model"),
    "v1-inference.yaml": (lambda path: path.write_text("model:\n  target: x\n"), "give it with --config"),
    "model.YML": (lambda path: path.write_text("channels: 4\n"), "give it with --config"),
    "page.json": (lambda path: path.write_text("<html>404</html>"), "HTML"),
    "unet": (part_of_a_pipeline, "is a part of a diffusers folder; give the whole: "),
}


@pytest.mark.parametrize("name", WRONG | DESCRIPTIONS)
def test_a_wrong_file_is_one_line_that_names_it_and_what_is_wrong(name, run, tmp_path):
    make, said = (WRONG | DESCRIPTIONS)[name]
    make(tmp_path / name)
    status, out, err = run("--prompt", "a dog", model=["--ckpt", str(tmp_path / name), "--device", "cpu"])
    assert status == 2 and out == [] and len(err) == 1
    assert name in err[0] and any(part in err[0] for part in said.split("|")), err[0]
    assert not (tmp_path / "canary").exists() and not list(Path().rglob("*.png"))


def test_the_canary_sings_where_a_pickle_is_run(tmp_path):
    """Else the tests above would show nothing."""
    calls_os(tmp_path / "calls.ckpt")
    torch.load(tmp_path / "calls.ckpt", weights_only=False)
    assert (tmp_path / "canary").is_dir()


def test_the_messages_differ(run, tmp_path):
    said = {}
    for name, (make, _) in WRONG.items():
        make(tmp_path / name)
        _, _, err = run("--prompt", "a dog", model=["--ckpt", str(tmp_path / name), "--device", "cpu"])
        said.setdefault(err[0].replace(str(tmp_path / name), "FILE"), []).append(name)
    assert sorted(len(names) for names in said.values()) == [1] * (len(WRONG) - 3) + [3], said  # three call os.system
