"""A tiny model with random weights and scripts/txt2img.py to run on it; a tiny pipeline of diffusers."""

import _cli
import pytest
import torch
import txt2img
from _txt2img import CONFIG
from omegaconf import OmegaConf
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The flags that choose a tiny model, written to files as a user has them."""
    from ldm.util import instantiate_from_config

    folder = tmp_path_factory.mktemp("tiny")
    OmegaConf.save(OmegaConf.create(CONFIG), folder / "tiny.yaml")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = instantiate_from_config(CONFIG["model"]).state_dict()
        # Where the original starts at zero, noise: else neither the caption nor the noise level would change anything.
        weights = {k: torch.randn_like(v) * 0.1 if v.ndim > 1 and not v.any() else v for k, v in weights.items()}
    save_file(weights, folder / "tiny.safetensors")
    return "--config", str(folder / "tiny.yaml"), "--ckpt", str(folder / "tiny.safetensors"), "--device", "cpu"


@pytest.fixture
def run(tiny, tmp_path, capsys, monkeypatch):
    """Run the script's main in a folder of its own; returns (exit status, stdout's and stderr's lines)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, model=tiny):
        status = 0
        try:
            _cli.run(txt2img.main, "txt2img", [*model, *map(str, flags)])
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, said.out.splitlines(), [line for line in said.err.splitlines() if line.startswith("txt2img")]

    return run


@pytest.fixture(scope="session", params=["v1", "v2-v"])
def pipe(request):
    """A pipeline of diffusers with random weights, shaped as Stable Diffusion 1, or 2 with v-prediction."""
    pytest.importorskip("transformers")
    import _diffusers

    return _diffusers.pipeline(request.param)


@pytest.fixture(scope="session")
def folder(pipe, tmp_path_factory):
    """Where it has saved itself."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(folder)
    return folder
