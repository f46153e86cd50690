"""scripts/txt2img.py by CompVis' command lines, and by the samplers that their flags choose."""

from pathlib import Path

import pytest
import torch
from _txt2img import difference, draw
from omegaconf import OmegaConf

from ldm.checkpoint import load_checkpoint, load_model
from ldm.image import read_settings, to_pil
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sampling import DDIMSampler, DPMSolverSampler, PLMSSampler

SAMPLERS = {"--plms": PLMSSampler, "--dpm_solver": DPMSolverSampler, "--dpm": DPMSolverSampler, None: DDIMSampler}


@pytest.mark.parametrize(
    "flags, count, told",
    [
        (["--prompt", "a photograph of an astronaut riding a horse", "--plms"], 6, ("PLMS", 4, 2.0)),
        (
            ["--prompt", "a virus monster is playing guitar, oil on canvas", "--ddim_eta", "0.0", "--n_samples", "4",
             "--n_iter", "4", "--scale", "5.0", "--ddim_steps", "50"],
            16, ("DDIM", 50, 5.0),
        ),
        (["--prompt", "a sunset behind a mountain range, vector image", "--ddim_eta", "1.0", "--n_samples", "1",
          "--n_iter", "1", "--H", "16", "--W", "32", "--scale", "5.0"], 1, ("DDIM", 4, 5.0)),
        (["--prompt", "a professional photograph of an astronaut riding a horse", "--H", "8", "--W", "8"], 6,
         ("DDIM", 4, 2.0)),
        (["--prompt", "a horse", "--n_iter", "1", "--steps", "3", "--dpm"], 3, ("DPMSolver", 3, 2.0)),
        (["--prompt", "a horse", "--n_iter", "1", "--steps", "3", "--plms"], 3, ("PLMS", 3, 2.0)),
        (["--prompt", "a horse", "--n_iter", "1", "--dpm_solver", "--fixed_code", "--precision", "full", "--seed", "7"],
         3, ("DPMSolver", 4, 2.0)),
    ],
)  # fmt: skip
def test_the_original_command_lines_run(flags, count, told, run):
    """Of the README of latent-diffusion, and of stable-diffusion's first and second, but for paths and sizes."""
    status, out, said = run(*flags)
    assert status == 0 and all("does not know" in line or "was cut" in line for line in said), said
    assert out[-1].startswith(f"{count} pictures: " if count > 1 else "1 picture: ")
    paths = list(Path("outputs/txt2img-samples/samples").iterdir())
    assert len(paths) == count
    for made in map(read_settings, paths):
        assert (made["sampler"], made["steps"], made["scale"]) == told and made["prompt"] == flags[1]


@pytest.mark.parametrize("flag", SAMPLERS)
def test_a_flag_draws_what_its_sampler_does(flag, run, tiny):
    ((pixels, made),) = draw(run, *([flag] if flag else []), "--n_samples", 1, "--n_iter", 1, "--steps", 5)
    model = load_model(OmegaConf.load(tiny[1]), load_checkpoint(tiny[3]))
    with torch.no_grad():
        samples, _ = SAMPLERS[flag](model).sample(
            5, 1, (4, 4, 4), model.get_learned_conditioning(["a red circle"]), seeds=[42], progress=False,
            unconditional_guidance_scale=2.0, unconditional_conditioning=model.get_learned_conditioning([""]),
        )  # fmt: skip
        (due,) = to_pil(model.decode_first_stage(samples))
    assert difference((pixels,), (due,)) <= 1 and made["steps"] == 5


def test_samplers_draw_other_pictures(run):
    drawn = [draw(run, *flags, "--n_samples", 1, out=f"{k}")[0] for k, flags in enumerate(([], ["--plms"], ["--dpm"]))]
    assert difference(drawn[0], drawn[1]) > 0 < difference(drawn[0], drawn[2]) and difference(drawn[1], drawn[2]) > 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--plms", "--dpm_solver"], "--dpm_solver/--dpm: not allowed with argument --plms"),
        (["--dpm", "--plms"], "--plms: not allowed with argument --dpm_solver/--dpm"),
        (["--plms", "--steps", 0], "'0': give an integer of at least 1"),
        (["--plms", "--ddim_eta", 0.5], "eta = 0.5: PLMS is deterministic; choose eta = 0, or DDIMSampler"),
        (["sampler.target=ldm.sampling.PLMSSampler", "sampler.params.eta=1.0"], "eta = 1.0: PLMS is deterministic"),
        (["--steps", 101], "--ddim_steps 101: choose a number of steps from 1 to 100"),
        (["--plms", "sampler.params.quantize_x0=1"], "sampler.params.quantize_x0 is 1; give true or false"),
    ],
)
def test_what_cannot_go_together_is_one_line(flags, said, run, no_model):
    status, out, err = run(*flags)
    assert status == 2 and not out and len(err) == 1 and said in err[0]


@pytest.fixture
def asked(tiny, run, monkeypatch):
    """A function: what is said of S steps of the tiny model with these changes; "loaded" where nothing is wrong."""

    def stop(*_, **__):
        raise ValueError("loaded")

    monkeypatch.setattr("ldm.checkpoint.load_model", stop)

    def asked(steps, *, target=None, sampler=None, without=(), **params):
        config = OmegaConf.load(tiny[1])
        config.model.target = target or config.model.target
        config.sampler.target = sampler or config.sampler.target
        config.model.params = {k: v for k, v in config.model.params.items() if k not in without} | params
        OmegaConf.save(config, "changed.yaml")
        status, _, (said,) = run("--steps", steps, model=("--config", "changed.yaml", *tiny[2:]))
        assert status == 2
        return said.partition("error: ")[2]

    return asked


class TwoThousand(LatentDiffusion):
    """A class of someone's, whose T is another where the config does not say it."""

    def __init__(self, *args, timesteps=2000, **kwargs):
        super().__init__(*args, timesteps=timesteps, **kwargs)


class Own:
    """A sampler of someone's: all that a sampler must have is `sample`."""

    def __init__(self, model):
        self.model = model

    def sample(self, S, batch_size, shape, conditioning=None, eta=0.0, unconditional_guidance_scale=1.0):
        raise NotImplementedError


def test_steps_are_held_against_the_timesteps_of_the_model_where_they_are_known(asked):
    theirs, many = (
        f"{__name__}.TwoThousand",
        "--ddim_steps {}: choose a number of steps from 1 to {}, the timesteps that the model",
    )
    assert asked(100) == "loaded" and asked(101).startswith(many.format(101, 100))
    assert asked(1000, without=["timesteps"]) == "loaded"
    assert asked(1001, without=["timesteps"]).startswith(many.format(1001, 1000))
    assert asked(1500, without=["timesteps"], target=theirs) == "loaded"  # its default cannot be known
    assert asked(301, timesteps=300, target=theirs).startswith(many.format(301, 300))
    assert asked(101, given_betas=[0.01] * 200) == "loaded"  # the betas are T, not `timesteps`


def test_a_sampler_of_ones_own_need_not_check_eta(asked, monkeypatch):
    monkeypatch.setattr("ldm.util._allowed_everywhere", ["ldm", __name__])
    assert asked(4, sampler=f"{__name__}.Own") == "loaded"


def test_noise_is_an_error_for_plms_and_without_effect_for_dpm_solver_as_in_the_original(run):
    status, out, err = run("--plms", "--ddim_eta", 0.5)
    assert status == 2 and not out and len(err) == 1 and "eta = 0.5: PLMS is deterministic; choose eta = 0" in err[0]
    assert not list(Path().rglob("*.png"))
    status, _, err = run("--prompt", "a red circle", "--n_iter", 1, "--dpm", "--ddim_eta", 0.5)
    assert status == 0 and len(err) == 1 and "eta = 0.5 has no effect: DPM-Solver++ is deterministic" in err[0]
