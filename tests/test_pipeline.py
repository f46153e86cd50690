"""DDIMPipeline: what it draws against truth, what it returns, and where its noise comes from."""

import numpy as np
import pytest
import torch
from _ddpm_pipeline import BETAS, GaussianUnet, generators, quiet, small_pipeline

from ldm.modules.diffusionmodules.model import Model
from ldm.pipeline import DDIMPipeline, ImagePipelineOutput
from ldm.sampling import DDIMScheduler

MEAN, STD = 0.1, 0.2  # so that no picture is clipped, nor any x0


def gaussian_pipeline(**options):
    return quiet(DDIMPipeline(GaussianUnet(MEAN, STD), DDIMScheduler(**BETAS, **options)))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_gaussian_data_come_out_with_their_mean_and_with_more_steps_with_their_spread(eta):
    pipe, lost = gaussian_pipeline(clip_sample=False), []
    for steps in (100, 1000):
        data = 2 * pipe(32, generators(0)[0], eta=eta, num_inference_steps=steps, output_type="pt").images - 1
        assert abs(data.mean() - MEAN) < 0.005
        lost.append(1 - data.std() / STD)
    assert abs(lost[1]) < 0.025 < 0.05 < lost[0]


def test_the_network_is_asked_once_per_step_for_all_pictures():
    pipe = gaussian_pipeline()
    pipe(2, num_inference_steps=4)
    assert pipe.unet.calls == [(torch.float32, [t, t]) for t in (750, 500, 250, 0)]


def test_pictures_come_as_pil_numpy_and_torch():
    pipe = small_pipeline()
    pil, array, tensor = (
        pipe(2, generators(5, 6), num_inference_steps=3, output_type=kind).images for kind in ("pil", "np", "pt")
    )
    assert tensor.shape == (2, 3, 8, 8) and tensor.dtype == torch.float32
    assert array.shape == (2, 8, 8, 3) and array.dtype == np.float32 and 0 <= array.min() < array.max() <= 1
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1))
    assert [p.mode for p in pil] == ["RGB", "RGB"]
    np.testing.assert_array_equal(np.stack(pil), (array * 255).round())


def test_pil_is_what_is_returned_unless_told():
    pictures = small_pipeline(in_channels=1, out_ch=1)(num_inference_steps=2).images
    assert [p.mode for p in pictures] == ["L"]


def test_the_output_is_read_by_name_by_position_or_as_a_tuple():
    pipe = small_pipeline()
    out = pipe(num_inference_steps=2)
    assert isinstance(out, ImagePipelineOutput)
    assert out.images is out["images"] is out[0] is out.to_tuple()[0]
    (pictures,) = pipe(num_inference_steps=2, return_dict=False)
    assert len(pictures) == 1
    with pytest.raises(KeyError):
        out["pictures"]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_generator_of_its_own_makes_a_picture_the_same_in_any_batch(eta):
    pipe, run = small_pipeline(), {"eta": eta, "num_inference_steps": 5, "output_type": "pt"}
    batch = pipe(3, generators(1, 2, 3), **run).images
    alone = pipe(1, generators(2), **run).images
    torch.testing.assert_close(batch[1:2], alone, rtol=0, atol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 0.1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_seed_fixes_the_pictures_and_none_takes_the_global_generator(eta):
    pipe, run = small_pipeline(), {"eta": eta, "num_inference_steps": 5, "output_type": "pt"}
    by_generator = [pipe(2, generators(7)[0], **run).images for _ in range(2)]
    assert torch.equal(*by_generator)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        assert torch.equal(pipe(2, **run).images, by_generator[0])
        assert not torch.equal(pipe(2, **run).images, by_generator[0])


def test_the_steps_stay_in_float32_where_the_network_computes_in_less():
    pipe = gaussian_pipeline()
    exact = pipe(2, generators(0)[0], num_inference_steps=50, output_type="np").images
    pipe.unet.register_buffer("something", torch.zeros(1, dtype=torch.bfloat16))
    pipe.unet.calls.clear()
    out = pipe(2, generators(0)[0], num_inference_steps=50, output_type="np").images
    assert {dtype for dtype, _ in pipe.unet.calls} == {torch.bfloat16}
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, exact, atol=0.02)


def test_the_pipeline_moves_with_its_network():
    pipe = small_pipeline()
    assert pipe.to(torch.bfloat16) is pipe and pipe.dtype == torch.bfloat16 and pipe.device == torch.device("cpu")
    assert pipe.to(device="meta").device == torch.device("meta")


def test_clipped_output_changes_the_steps_only_where_it_is_asked_for():
    pipe, run = small_pipeline(), {"num_inference_steps": 5, "output_type": "pt"}
    plain, told, clipped = (
        pipe(1, generators(0), use_clipped_model_output=use, **run).images for use in (None, False, True)
    )
    assert torch.equal(plain, told) and not torch.equal(plain, clipped)


def test_a_scheduler_that_is_not_ddims_is_replaced():
    class DDPMScheduler:
        config = {"_class_name": "DDPMScheduler", **BETAS, "clip_sample": False, "variance_type": "fixed_small"}

        def step(self, model_output, timestep, sample, generator=None): ...

    pipe, ddim = small_pipeline(DDPMScheduler()), small_pipeline(DDIMScheduler(**BETAS, clip_sample=False))
    assert isinstance(pipe.scheduler, DDIMScheduler)
    run = {"num_inference_steps": 5, "output_type": "pt"}
    assert torch.equal(pipe(1, generators(0), **run).images, ddim(1, generators(0), **run).images)
    assert ddim.scheduler is small_pipeline(ddim.scheduler).scheduler

    DDPMScheduler.config = {"_class_name": "KarrasVeScheduler", "sigma_max": 100}
    with pytest.raises(ValueError, match="KarrasVeScheduler, without betas; DDIM needs those of a DDIM, DDPM or PNDM"):
        small_pipeline(DDPMScheduler())


def test_a_network_with_diffusers_interface_is_read_as_there():
    class Output:
        def __init__(self, sample):
            self.sample = sample

    class Unet(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.config = type("Config", (), {"in_channels": 3, "sample_size": (8, 8)})

        def forward(self, x, t):
            return Output(self.inner(x, t))

    ours, run = small_pipeline(), {"num_inference_steps": 3, "output_type": "pt"}
    theirs = quiet(DDIMPipeline(Unet(ours.unet), ours.scheduler))
    assert torch.equal(ours(2, generators(1, 2), **run).images, theirs(2, generators(1, 2), **run).images)


def test_the_bar_counts_steps_and_can_be_off(capfd):
    pipe = gaussian_pipeline()
    pipe(num_inference_steps=3)
    assert capfd.readouterr().err == ""
    pipe.set_progress_bar_config(desc="drawing")
    pipe(num_inference_steps=3)
    err = capfd.readouterr().err
    assert "drawing" in err and "3/3" in err
    with pipe.progress_bar(total=5) as bar:
        bar.update(5)
    assert "5/5" in capfd.readouterr().err


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"output_type": "jpg"}, "output_type='jpg' is not known; choose one of 'pil', 'np', 'pt'"),
        ({"batch_size": 0}, "batch_size=0: give the number of pictures, a whole number of at least 1"),
        ({"eta": -1}, "eta = -1: choose 0"),
        ({"generator": generators(1, 2)}, "generator holds 2, but batch_size is 1: give one for each sample"),
    ],
)
def test_a_wrong_request_is_named_before_anything_is_drawn(wrong, message):
    pipe = gaussian_pipeline()
    with pytest.raises(ValueError, match=message):
        pipe(**wrong)
    assert pipe.unet.calls == []


def test_no_picture_is_made_of_what_is_not_finite():
    pipe = small_pipeline()
    pipe.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        pipe(num_inference_steps=2)


def test_a_network_in_training_is_used_as_it_is():
    pipe = small_pipeline(dropout=0.5)
    assert isinstance(pipe.unet, Model)
    run = {"num_inference_steps": 3, "output_type": "pt"}
    still = pipe(1, generators(0), **run).images
    assert torch.equal(still, pipe(1, generators(0), **run).images) and not still.requires_grad
    pipe.unet.train()
    pipe(1, generators(0), **run)
    assert pipe.unet.training
