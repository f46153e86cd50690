"""Folders of diffusers', of which a JSON value, a file's bytes or the set of files is another."""

from __future__ import annotations

import json
import math
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzzing import pipeline_folder
from fuzzing.cases import Case
from fuzzing.mutate import WORDS, changed
from ldm.checkpoint import load_checkpoint
from ldm.checkpoint.errors import CheckpointError, RefusedError

_VALUES = [
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, "", "a", "a" * 10**5,
    "../../../etc/passwd", "/etc/passwd", "\0", "\ud800", "__class__", [], [[]], [0], [1] * 1000, ["os", "system"],
    [["os", "system"]] * 2, {}, {"target": "os.system"}, {"a": {"b": {"c": {}}}},
]  # fmt: skip
_FILES = {"model_index.json", *(name for name in pipeline_folder.SD1 if name.endswith("config.json"))}
_STRAYS = [
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "vae/diffusion_pytorch_model.bin",
    "tokenizer/added_tokens.json",
    "tokenizer/vocab.json",
    "low_res_scheduler/scheduler_config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
]


def case(chance: random.Random, folder: Path) -> Case:
    path = folder / "pipeline"
    pipeline_folder.write(path, chance.choice([{}, pipeline_folder.SD2, pipeline_folder.UPSCALER]))
    for _ in range(chance.randint(1, 3)):
        with suppress(OSError, ValueError, RecursionError, IndexError):  # of a file that the last change spoilt
            chance.choice(_CHANGES)(chance, path)
    refusals = (CheckpointError, RefusedError, FileNotFoundError)
    return Case(path, lambda: load_checkpoint(path), refusals, str(path), _wrong)


def _wrong(found: Any) -> str | None:
    target = found.config["model"]["target"]
    return None if target.startswith("ldm.models.diffusion.ddpm.") else f"its config has the target {target!r}"


def _another_value(chance: random.Random, path: Path) -> None:
    file = path / chance.choice(sorted(_FILES))
    values = json.loads(file.read_text()) if file.is_file() else {}
    if not isinstance(values, dict):
        return
    name = chance.choice([*values, "new", "scaling_factor", "trained_betas", "prediction_type", "max_noise_level"])
    value = chance.choice(_VALUES)
    if isinstance(values.get(name), list) and chance.random() < 0.5:
        value = [*values[name][:-1], value]
    file.write_text(json.dumps({**values, name: value}))


def _other_bytes(chance: random.Random, path: Path) -> None:
    file = chance.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    telling = WORDS if file.suffix == ".json" else [*WORDS, b"F64", b"BOOL", b"[0,0]"]
    file.write_bytes(changed(file.read_bytes(), chance, telling))


def _gone(chance: random.Random, path: Path) -> None:
    file = chance.choice(sorted(path.rglob("*")))
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink()


def _stray(chance: random.Random, path: Path) -> None:
    file = path / chance.choice(_STRAYS)
    file.parent.mkdir(exist_ok=True)
    lists = {"weight_map": chance.choice([{"a": chance.choice(["../../x", "/etc/passwd", "", ".", "a\0b"])}, [], 1])}
    file.write_text(json.dumps(chance.choice([lists, {"<new>": 49408}, {"<new>": -1}, [], "a", {"a": 10**400}])))


def _deep(chance: random.Random, path: Path) -> None:
    file = path / chance.choice(sorted(_FILES))
    if file.parent.is_dir():
        depth = chance.choice([100, 900, 990, 2000, 100_000])
        file.write_text('{"_class_name": ' + "[" * depth + "]" * depth + "}")


def _a_folder_instead(chance: random.Random, path: Path) -> None:
    file = path / chance.choice(sorted(_FILES))
    if file.is_file():
        file.unlink()
        file.mkdir()


_CHANGES = (_another_value, _another_value, _another_value, _other_bytes, _gone, _stray, _deep, _a_folder_instead)


def warm(folder: Path) -> None:
    for k, changes in enumerate(({}, pipeline_folder.SD2, pipeline_folder.UPSCALER)):
        load_checkpoint(pipeline_folder.write(folder / str(k), changes))
