"""The pictures that a training logs of a batch."""

import pytest
import torch
from _networks import randn
from test_conditioning import HALVING, LABELS, NOISY, build

import ldm.util
from ldm.models.diffusion.ddpm import LatentInpaintDiffusion, LatentUpscaleDiffusion
from ldm.sampling import DDIMSampler

BATCH = {"jpg": randn(5, 8, 8, 3).tanh(), "txt": ["a", "star", "a star", "", "a"]}
GUIDED = "samples_cfg_scale_7.50"
QUICK = {"ddim_steps": 4, "inpaint": False, "plot_diffusion_rows": False, "plot_progressive_rows": False}


@pytest.fixture(autouse=True)
def text_as_numbers(request, monkeypatch):
    """In place of drawn text, which needs Pillow: a picture whose value is the text's length."""
    if "real_text" not in request.fixturenames:

        def drawn(wh, xc, size=10):
            return torch.stack([torch.full((3, wh[1], wh[0]), float(len(text))) for text in xc])

        monkeypatch.setattr(ldm.util, "log_txt_as_img", drawn, raising=False)


@pytest.fixture
def real_text():
    pytest.importorskip("PIL")
    if not hasattr(ldm.util, "log_txt_as_img"):
        pytest.skip("ldm.util has no log_txt_as_img")


@pytest.fixture
def model():
    """Its autoencoder halves the size, and its posterior has no spread."""
    model = build(first_stage=HALVING, image_size=4, channels=4, timesteps=50, log_every_t=10)
    model.first_stage_model.quant_conv.weight.data[4:] = 0
    model.first_stage_model.quant_conv.bias.data[4:] = -60
    model.model.diffusion_model = Spread()
    return model


class Spread(torch.nn.Module):
    """A smooth answer that depends on all that the network is told."""

    def forward(self, x, t, context=None, y=None):
        said = x.new_zeros(len(x)) if context is None else torch.sin(3 * context[:, :, 0]).mean(1)
        return torch.sin(x[:, :4]) + 0.3 * said.view(-1, 1, 1, 1) + 0.001 * t.view(-1, 1, 1, 1)


def test_all_that_is_asked_for_is_there_in_its_shape(model):
    log = model.log_images(
        BATCH, N=3, n_row=2, ddim_steps=10, unconditional_guidance_scale=7.5, plot_denoise_rows=True, split="train"
    )
    pictures = {"inputs", "reconstruction", "conditioning", "samples", GUIDED, "samples_inpainting", "mask"}
    pictures |= {"samples_outpainting"}
    assert set(log) == pictures | {"diffusion_row", "denoise_row", "progressive_row"}
    assert all(log[key].shape == (3, 3, 8, 8) for key in pictures - {"mask"})
    assert log["mask"].shape == (3, 1, 4, 4)
    assert all(value.isfinite().all() and not value.requires_grad for value in log.values())
    assert torch.equal(log["inputs"], BATCH["jpg"][:3].permute(0, 3, 1, 2))
    assert log["conditioning"][:, 0, 0, 0].tolist() == [1, 4, 6]
    z = model.get_input(BATCH, "jpg")[0]
    torch.testing.assert_close(log["reconstruction"], model.decode_first_stage(z)[:3])


def cells(grid, rows, size=8, gap=2):
    """The pictures of a grid, (rows, columns, C, size, size); what lies between is to be 0."""
    columns = (grid.shape[2] - gap) // (size + gap)
    assert grid.shape == (3, rows * (size + gap) + gap, columns * (size + gap) + gap)
    between, found = grid.clone(), []
    for i in range(rows):
        for j in range(columns):
            y, x = gap + i * (size + gap), gap + j * (size + gap)
            found.append(grid[:, y : y + size, x : x + size])
            between[:, y : y + size, x : x + size] = 0
    assert not between.any()
    return torch.stack(found).unflatten(0, (rows, columns))


@pytest.fixture
def seeded(model, monkeypatch):
    """The model, whose sampling has seeds; what each call of `sample_log` returned is in the list."""
    returned, original = [], model.sample_log

    def sample_log(**kwargs):
        returned.append(original(**kwargs, seeds=range(kwargs["batch_size"])))
        return returned[-1]

    monkeypatch.setattr(model, "sample_log", sample_log)
    return model, returned


def test_rows_lead_from_noise_to_the_sample(seeded):
    model, returned = seeded
    log = model.log_images(BATCH, n_row=2, **{**QUICK, "plot_progressive_rows": True}, plot_denoise_rows=True)
    ((samples, steps),) = returned
    torch.testing.assert_close(log["samples"], model.decode_first_stage(samples))
    for name, latents in (("denoise_row", steps["x_inter"]), ("progressive_row", steps["pred_x0"][1:])):
        row = cells(log[name], 2)
        assert row.shape[1] == len(latents) == {"denoise_row": 5, "progressive_row": 4}[name]
        for k, z in enumerate(latents):
            torch.testing.assert_close(row[:, k], model.decode_first_stage(z)[:2], rtol=1e-4, atol=1e-4)


def test_the_diffusion_row_is_the_input_as_noise_is_added(model, monkeypatch):
    noise = randn(2, 4, 4, 4)
    monkeypatch.setattr(model, "q_sample", lambda z, t: type(model).q_sample(model, z, t, noise))
    row = cells(model.log_images(BATCH, n_row=2, sample=False)["diffusion_row"], 2)
    z = model.get_input(BATCH, "jpg", bs=2)[0]
    for k, t in enumerate((0, 10, 20, 30, 40, 49)):
        noisy = type(model).q_sample(model, z, torch.full((2,), t), noise)
        torch.testing.assert_close(row[:, k], model.decode_first_stage(noisy), rtol=1e-4, atol=1e-4)
    assert row.shape[1] == 6


def test_a_row_is_made_of_latents_or_of_what_a_sampler_returns(model):
    latents = [randn(3, 4, 4, 4, seed=k) for k in range(4)]
    grid = model._get_denoise_row_from_list(latents)
    pictures = cells(grid, 3)
    for k, z in enumerate(latents):
        torch.testing.assert_close(pictures[:, k], model.decode_first_stage(z))
    assert torch.equal(model._get_denoise_row_from_list({"x_inter": latents, "pred_x0": []}), grid)


def drawn(model, S=4, n=5, **options):
    """Decoded samples, with the seeds of `seeded`."""
    c = options.pop("c", None)
    c = model.get_learned_conditioning(BATCH["txt"][:n]) if c is None else c
    options = {"eta": 1.0, "verbose": False, "seeds": range(n), **options}
    return model.decode_first_stage(DDIMSampler(model).sample(S, n, (4, 4, 4), c, **options)[0])


@pytest.mark.parametrize("label, text", [(None, ""), ("star", "star")])
def test_guidance_leads_away_from_nothing_or_from_a_label(seeded, label, text):
    model, _ = seeded
    guided = {"unconditional_guidance_scale": 7.5}
    log = model.log_images(BATCH, **QUICK, sample=False, unconditional_guidance_label=label, **guided)
    assert set(log) == {"inputs", "reconstruction", "conditioning", GUIDED}
    expected = drawn(model, **guided, unconditional_conditioning=model.get_learned_conditioning([text] * 5))
    torch.testing.assert_close(log[GUIDED], expected)
    assert (expected - drawn(model)).abs().max() > 1e-3


def test_steps_and_eta_are_those_that_are_asked_for(seeded):
    model, _ = seeded
    log = model.log_images(BATCH, **{**QUICK, "ddim_steps": 7}, ddim_eta=0.3)
    torch.testing.assert_close(log["samples"], drawn(model, 7, eta=0.3))
    log = model.log_images(BATCH, **{**QUICK, "ddim_steps": None})
    torch.testing.assert_close(log["samples"], drawn(model, 50, final_alpha="one"))


def test_all_steps_of_ddpm_are_the_posteriors(model, monkeypatch):
    """`sample_log` without ddim against Ho et al. 2020, algorithm 2, by the model's own formulas."""
    c = model.get_learned_conditioning(BATCH["txt"])
    noise = [randn(5, 4, 4, 4, seed=k) for k in range(50)]
    samples, _ = model.sample_log(
        c, 5, ddim=False, ddim_steps=None, x_T=randn(5, 4, 4, 4, seed=99), normals_sequence=noise
    )
    x = randn(5, 4, 4, 4, seed=99)
    for k, step in enumerate(reversed(range(50))):
        t = torch.full((5,), step)
        x0 = model.predict_start_from_noise(x, t, model.apply_model(x, t, c))
        mean, variance, _ = model.q_posterior(x0, x, t)
        x = mean + variance.sqrt() * noise[k]
    torch.testing.assert_close(samples, x, rtol=1e-3, atol=1e-3)
    with pytest.warns(UserWarning, match="eta has no effect without ddim"):
        model.sample_log(c, 5, ddim=False, ddim_steps=None, eta=0.5)


def test_the_middle_is_drawn_anew_and_then_all_but_the_middle(seeded):
    model, _ = seeded
    log = model.log_images(BATCH, **{**QUICK, "inpaint": True})
    mask, z = log["mask"], model.get_input(BATCH, "jpg")[0]
    assert mask.mean() == 0.75 and not mask[:, :, 1:3, 1:3].any()
    torch.testing.assert_close(log["samples_inpainting"], drawn(model, x0=z, mask=mask), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log["samples_outpainting"], drawn(model, x0=z, mask=1 - mask), rtol=1e-4, atol=1e-4)
    assert "mask" not in model.log_images(BATCH, **{**QUICK, "inpaint": True}, sample=False)


def test_the_averaged_weights_draw_unless_told_otherwise(monkeypatch):
    model = build(first_stage=HALVING, image_size=4, channels=4, timesteps=50)
    model.model.diffusion_model = Spread()
    inside = []
    monkeypatch.setattr(model, "ema_scope", lambda context=None: inside.append(context) or torch.no_grad())
    model.log_images(BATCH, **QUICK)
    assert inside == ["Plotting"]
    model.log_images(BATCH, **QUICK, use_ema_scope=False)
    assert inside == ["Plotting"]


def test_only_the_keys_that_are_asked_for_come_back(model):
    assert set(model.log_images(BATCH, **QUICK, return_keys=["samples", "inputs", "none"])) == {"samples", "inputs"}
    assert "reconstruction" in model.log_images(BATCH, **QUICK, return_keys=["none"])
    with pytest.warns(UserWarning, match="log_images knows nothing of ddim_step: without effect"):
        model.log_images(BATCH, **QUICK, ddim_step=3)


def test_a_batch_of_another_size_is_drawn_in_its_own(model):
    batch = {**BATCH, "jpg": randn(5, 12, 16, 3)}
    assert model.log_images(batch, **QUICK)["samples"].shape == (5, 3, 12, 16)
    assert model.log_images(batch, **QUICK)["conditioning"].shape == (5, 3, 12, 16)


def test_what_conditions_is_shown_where_it_can_be():
    labels = {"jpg": BATCH["jpg"], "class_label": torch.tensor([0, 1, 2, 3, 4])}
    model = build(first_stage=HALVING, cond_stage=LABELS, cond_stage_key="class_label", image_size=4, channels=4)
    assert "conditioning" not in model.log_images(labels, **QUICK, sample=False)
    log = model.log_images({**labels, "human_label": ["cat", "dog", "x", "y", "z"]}, **QUICK, sample=False)
    assert log["conditioning"][:2, 0, 0, 0].tolist() == [3, 3]
    model = build(
        first_stage=HALVING, cond_stage={"target": "torch.nn.Identity"}, conditioning_key="concat", channels=4,
        cond_stage_key="small", image_size=4,
    )  # fmt: skip
    small = randn(5, 4, 4, 3)
    log = model.log_images({**BATCH, "small": small}, **QUICK, sample=False)
    assert torch.equal(log["conditioning"], small.permute(0, 3, 1, 2))
    model = build(
        first_stage=HALVING, cond_stage="__is_unconditional__", conditioning_key=None, image_size=4, channels=4
    )
    model.model.diffusion_model = Spread()
    assert set(model.log_images(BATCH, **QUICK)) == {"inputs", "reconstruction", "samples"}


def test_a_quantising_first_stage_shows_its_codes_too():
    from test_vq import SMALL_VQ

    first_stage = {"target": "ldm.models.autoencoder.VQModelInterface", "params": SMALL_VQ}
    model = build(first_stage=first_stage, cond_stage="__is_unconditional__", conditioning_key=None, timesteps=50)
    model.model.diffusion_model = Spread()
    batch = {"jpg": randn(2, 16, 16, 3)}
    log = model.log_images(batch, **QUICK)
    assert log["samples_x0_quantized"].shape == (2, 3, 16, 16)
    assert "samples_x0_quantized" not in model.log_images(batch, **QUICK, quantize_denoised=False)


@pytest.mark.parametrize("kind", [LatentInpaintDiffusion, LatentUpscaleDiffusion])
def test_models_that_are_shown_a_picture_log_too(kind):
    batch = {**BATCH, "mask": torch.ones(5, 8, 8, 1), "masked_image": BATCH["jpg"] * 0, "lr": randn(5, 4, 4, 3)}
    settings = {"conditioning_key": "hybrid"}
    if kind is LatentUpscaleDiffusion:
        settings = {"conditioning_key": "hybrid-adm", "low_scale_config": NOISY, "low_scale_key": "lr"}
    model = build(kind, HALVING, image_size=4, channels=4, timesteps=50, **settings)
    model.model.diffusion_model = Spread()
    log = model.log_images(batch, N=2, **QUICK, unconditional_guidance_scale=3.0)
    assert log["samples"].shape == log["samples_cfg_scale_3.00"].shape == (2, 3, 8, 8)
    assert (log["samples"] - log["samples_cfg_scale_3.00"]).abs().max() > 1e-4
    assert log["conditioning"][:, 0, 0, 0].tolist() == [1, 4]


def test_captions_are_drawn_as_pictures(model, real_text):
    log = model.log_images({**BATCH, "jpg": randn(5, 64, 64, 3)}, **QUICK, sample=False)
    assert log["conditioning"].shape == (5, 3, 64, 64)
    assert log["conditioning"].min() >= -1 and log["conditioning"].max() <= 1
    assert not torch.equal(log["conditioning"][0], log["conditioning"][1])


def test_sample_takes_all_steps_of_ddpm_as_sample_log_does_without_ddim(model):
    c = model.get_learned_conditioning(["a star"])
    torch.manual_seed(1)
    samples, on_the_way = model.sample(c, batch_size=1, return_intermediates=True, verbose=False)
    torch.manual_seed(1)
    expected, _ = model.sample_log(c, 1, ddim=False, ddim_steps=None)
    assert torch.equal(samples, expected) and torch.equal(on_the_way[-1], samples) and len(on_the_way) > 1
    with pytest.raises(ValueError, match="timesteps=5: DDPM takes all steps here; for fewer use sample_log"):
        model.sample(c, batch_size=1, timesteps=5)
