"""Research repositories that were written for CompVis' `ldm`, on this one: see tests/repositories/README.md."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.util import instantiate_from_config

HERE = Path(__file__).parent / "repositories"
ROOT = Path(__file__).parents[1]
pytest.importorskip("einops", reason="the repositories import einops, which is not installed")


def of(name, folder):
    """A copy of a repository, in `folder`."""
    return Path(shutil.copytree(HERE / name, folder / name))


def run(repository, script, *arguments):
    """Run one of its scripts as its owner would; returns what its last line says, as JSON."""
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=repository,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(repository), str(ROOT)]), "PYTHONDONTWRITEBYTECODE": "1"}
        | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


def released(config_file, folder, without=()):
    """A file with random weights of the plain model of a config, as a released checkpoint would be."""
    config = OmegaConf.to_container(OmegaConf.load(config_file))["model"]
    params = {k: v for k, v in config["params"].items() if k not in without}
    params["unet_config"]["target"] = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = instantiate_from_config({"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params})
        weights = model.state_dict()
        # Where the original starts at zero, noise: else neither the text nor the noise level would change anything.
        weights = {k: torch.randn_like(v) * 0.1 if v.ndim > 1 and not v.any() else v for k, v in weights.items()}
    model.load_state_dict(weights)
    torch.save({"state_dict": weights, "global_step": 1}, folder / "sd.ckpt")
    return model.eval(), folder / "sd.ckpt"


# ---------------------------------------------------------------------------------------------------------- ControlNet


@pytest.fixture(scope="module")
def controlnet(tmp_path_factory):
    """(the repository, the model that it begins from, a checkpoint to which control was added)"""
    folder = tmp_path_factory.mktemp("controlnet")
    repository = of("controlnet", folder)
    own = ("control_stage_config", "control_key", "only_mid_control")
    model, path = released(repository / "models" / "cldm_tiny.yaml", folder, own)
    run(repository, "tool_add_control.py", path, folder / "control.ckpt")
    return repository, model, folder / "control.ckpt"


def test_controlnet_says_nothing_before_it_was_trained(controlnet):
    """Its zero convolutions are silent: what it samples is what the model without it samples."""
    from ldm.sampling import DDIMSampler

    repository, model, ckpt = controlnet
    said = run(repository, "canny2image.py", ckpt)
    model.share_latents = lambda conds: None  # as there: both halves of a guided batch, so that roundings are the same
    torch.manual_seed(3)
    with torch.no_grad():
        c, u = (model.get_learned_conditioning([text] * 2) for text in ("square number 0, best quality", "lowres"))
        plain, _ = DDIMSampler(model).sample(
            4, 2, (4, 8, 8), c, verbose=False, unconditional_guidance_scale=9.0, unconditional_conditioning=u
        )
    torch.testing.assert_close(torch.tensor(said["samples"]), plain, rtol=0, atol=1e-4)
    assert said["hint_matters"] == 0 and said["pictures"] == [[64, 64, 3]] * 2
    assert said["guessed"] < 1e-3  # also where the hint is withheld from one side of guidance


@pytest.mark.parametrize("how", ["plain", "lightning"])
def test_controlnet_trains_and_then_follows_its_hint(controlnet, how, tmp_path):
    if how == "lightning":
        pytest.importorskip("lightning", reason="lightning is not installed")
    repository, _, ckpt = controlnet
    said = run(repository, "tutorial_train.py", ckpt, how, 30)
    assert said["after"] < 0.9 * said["before"], said
    assert said["locked"], "the weights that the repository locks have moved"


def test_a_controlnet_with_weights_samples_by_its_hint_and_logs_its_pictures(controlnet, tmp_path):
    repository, _, ckpt = controlnet
    weights = torch.load(ckpt, weights_only=True)
    torch.manual_seed(1)
    zeros = [k for k, v in weights.items() if k.startswith("control_model.") and v.ndim > 1 and not v.any()]
    assert len(zeros) >= 6  # its zero convolutions
    torch.save({**weights, **{k: torch.randn_like(weights[k]) * 0.1 for k in zeros}}, tmp_path / "trained.ckpt")
    said = run(repository, "canny2image.py", tmp_path / "trained.ckpt")
    assert said["hint_matters"] > 0.01 and said["guessed"] > 0.01
    silent = run(repository, "canny2image.py", ckpt)["samples"]
    torch.testing.assert_close(torch.tensor(said["silent"]), torch.tensor(silent), rtol=0, atol=1e-4)  # at strength 0
    assert said["log"].pop("denoise_row")[0] == 3
    assert said["log"] == {
        "reconstruction": [2, 3, 64, 64], "control": [2, 3, 64, 64], "conditioning": [2, 3, 64, 64],
        "diffusion_row": [6, 2, 3, 64, 64], "samples": [2, 3, 64, 64], "samples_cfg_scale_9.00": [2, 3, 64, 64],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ InstructPix2Pix


def test_instruct_pix2pix_with_its_own_model_class_edits_by_two_scales(tmp_path):
    said = run(of("instruct_pix2pix", tmp_path), "edit_cli.py")
    assert said["apart"] < 1e-4, "the sampler's second scale is not the repository's"
    assert said["second_scale"] > 0.01 and said["edited"] == [1, 3, 64, 64]
    assert said["gradient"] > 0, "the picture beside the noise is not learnt from"


# ---------------------------------------------------------------------------------------------------- textual inversion


@pytest.fixture(scope="module")
def inversion(tmp_path_factory):
    """(the repository, a checkpoint, the vectors that it learned, what its training said)"""
    folder = tmp_path_factory.mktemp("inversion")
    repository = of("textual_inversion", folder)
    _, path = released(repository / "v1-finetune.yaml", folder, ("personalization_config",))
    return repository, path, folder / "embeddings.pt", run(repository, "main.py", path, folder / "embeddings.pt", 60)


def test_textual_inversion_moves_its_vectors_alone_and_lowers_the_loss(inversion):
    said = inversion[3]
    assert said["vectors"] == [[2, 32]] and said["moved"] > 0.01 and said["others_moved"] == []
    assert said["after"] < said["before"], said


@pytest.mark.parametrize("flags", [[], ["--plms"]], ids=["ddim", "plms"])
def test_what_was_learned_is_drawn_where_the_placeholder_stands(inversion, flags):
    repository, ckpt, learned, _ = inversion

    def drawn(*more):
        said = run(repository, "stable_txt2img.py", "--ckpt", ckpt, *flags, *more)
        assert said["picture"] == [2, 64, 64, 3]
        return torch.tensor(said["samples"])

    before, after = drawn(), drawn("--embedding_path", learned)
    assert (before - after).abs().max() > 1e-3
    plain = ["--prompt", "a photo of a dog"]
    torch.testing.assert_close(drawn(*plain), drawn(*plain, "--embedding_path", learned), rtol=0, atol=1e-5)
