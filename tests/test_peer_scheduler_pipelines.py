"""DDIMScheduler among diffusers' files, schedulers and pipelines."""

import warnings

import numpy as np
import pytest
import torch
from _mixture import randn
from _scheduler import SD

from ldm.sampling import DDIMScheduler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def test_each_reads_the_others_file(tmp_path, caplog):
    options = {**SD, "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "trailing"}
    DDIMScheduler(**options).save_pretrained(tmp_path / "ours")
    theirs = diffusers.DDIMScheduler.from_pretrained(tmp_path / "ours")
    assert not caplog.records  # no word about keys that it does not know
    theirs.save_pretrained(tmp_path / "theirs")
    ours = DDIMScheduler.from_pretrained(tmp_path / "theirs")
    for name, value in options.items():
        assert ours.config[name] == theirs.config[name] == value
    for cls in (diffusers.DDIMInverseScheduler, diffusers.EulerDiscreteScheduler):
        assert cls.from_config(ours.config).config.beta_start == SD["beta_start"]


@pytest.mark.parametrize("name", [e.name for e in diffusers.schedulers.KarrasDiffusionSchedulers])
def test_every_compatible_schedulers_config_is_read_and_takes_ours(name):
    try:
        theirs = getattr(diffusers, name)()
    except ImportError:
        pytest.skip(f"{name} needs a package that is not installed")
    with warnings.catch_warnings():
        if name != "EDMEulerScheduler":  # whose sigmas are always its own
            warnings.simplefilter("error", UserWarning)
        ours = DDIMScheduler.from_config(theirs.config)
        assert ours.config.timestep_spacing == "leading"  # its default, not theirs
        again = DDIMScheduler.from_config(type(theirs).from_config(DDIMScheduler(**SD).config).config)
    assert {k: again.config[k] for k in SD} == SD


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["next", "stride"])
def test_it_runs_a_stable_diffusion_pipeline(pipe, eta, rule):
    width = pipe.unet.config.cross_attention_dim
    prompt = randn(1, 77, width).float()

    def picture():
        return pipe(
            prompt_embeds=prompt, negative_prompt_embeds=0 * prompt, num_inference_steps=7, eta=eta, output_type="np",
            height=64, width=64, generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    theirs, original = diffusers.DDIMScheduler.from_config(pipe.scheduler.config), pipe.scheduler
    pipe.set_progress_bar_config(disable=True)
    try:
        pipe.scheduler = theirs
        expected = picture()
        pipe.scheduler = DDIMScheduler.from_config(theirs.config, step_rule=rule)
        np.testing.assert_allclose(picture(), expected, atol=1e-4)
    finally:
        pipe.scheduler = original


def test_a_pipeline_that_repairs_old_configs_repairs_ours(pipe):
    parts = {**pipe.components, "scheduler": DDIMScheduler(**SD)}
    with pytest.warns(FutureWarning, match="outdated"):
        made = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    ours = made.scheduler
    assert isinstance(ours, DDIMScheduler) and ours.config.steps_offset == 1 and not ours.config.clip_sample
    ours.set_timesteps(10)
    assert ours.timesteps[-1] == 1 and ours.config.step_rule == "next"


def test_it_runs_a_ddim_pipeline():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe, found = diffusers.DDIMPipeline(unet, diffusers.DDPMScheduler()), []
    pipe.set_progress_bar_config(disable=True)
    for scheduler in (pipe.scheduler, DDIMScheduler.from_config(pipe.scheduler.config)):
        pipe.scheduler = scheduler
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        found.append(pipe(2, generators, eta=1.0, num_inference_steps=5, output_type="np").images)
    np.testing.assert_allclose(*found, atol=1e-5)
