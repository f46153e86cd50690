"""A training begins from another's weights: what fits is taken, and the rest is told."""

import logging

import pytest
import torch
from _networks import randn
from _trained import UNET, build
from test_conditioning import build as conditioned

from ldm.checkpoint import CheckpointError, save_checkpoint
from ldm.models.diffusion.ddpm import LatentDiffusion, LatentInpaintDiffusion

FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture
def other():
    """A model with other weights than `build`'s."""
    model = build()
    for k, p in enumerate(model.parameters()):
        p.data = randn(*p.shape, seed=k)
    return model


def saved(path, weights):
    save_checkpoint(weights, path)
    return str(path)


def equal(model, other, prefix=""):
    theirs = other.state_dict()
    return [k for k, v in model.state_dict().items() if k.startswith(prefix) and not torch.equal(v, theirs[k])] == []


@pytest.fixture
def report(caplog):
    """What was logged, as one text."""
    caplog.set_level(logging.INFO, logger="ldm")
    return lambda: "\n".join(f"{record.levelname}: {record.getMessage()}" for record in caplog.records)


def test_a_whole_file_is_taken_and_the_log_says_so(other, report, tmp_path):
    model = build(ckpt_path=saved(tmp_path / "a.ckpt", other))
    assert equal(model, other)
    assert report() == f"INFO: '{tmp_path / 'a.ckpt'}' was loaded, and all of it fits"


def test_what_is_missing_and_what_is_unexpected_is_logged(other, report, tmp_path):
    weights = {k: v for k, v in other.state_dict().items() if not k.startswith("cond_stage_model.")}
    model, first = build(), build()
    model.init_from_ckpt(saved(tmp_path / "a.ckpt", {**weights, "control_model.x": randn(2)}))
    assert equal(model, other, "model.") and equal(model, first, "cond_stage_model.")
    assert report().startswith("WARNING") and "1 unexpected: control_model.x" in report()
    missing = [k for k in first.state_dict() if k.startswith("cond_stage_model.")]
    assert f"{len(missing)} missing: {missing[0]}" in report()


def test_ignored_keys_are_passed_over(other, report, tmp_path):
    path, first = saved(tmp_path / "a.ckpt", other), build()
    model = build(ckpt_path=path, ignore_keys=["cond_stage_model.", FIRST_LAYER])
    assert equal(model, first, "cond_stage_model.") and equal(model, first, FIRST_LAYER)
    assert equal(model, other, "model.diffusion_model.out")
    assert "WARNING" in report() and FIRST_LAYER in report()
    assert equal(build(ckpt_path=path, ignore_keys=None), other)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.filterwarnings("ignore:.*holds no averaged weights")
def test_the_network_alone_may_be_taken(other, report, alone, tmp_path):
    other.model_ema(other.model)
    weights = other.model.state_dict() if alone else other.state_dict()
    model = build(ckpt_path=saved(tmp_path / "a.safetensors", weights), load_only_unet=True)
    assert equal(model, other, "model.") and equal(model, build(), "cond_stage_model.")
    assert "WARNING" not in report(), "what was not asked for is not missing"
    averages = other.model_ema if not alone else type(other.model_ema)(other.model)
    assert all(torch.equal(v, dict(averages.named_buffers())[k]) for k, v in model.model_ema.named_buffers())


def test_the_average_is_the_files_or_begins_at_the_weights(other, tmp_path):
    other.model_ema.num_updates.fill_(7)
    whole = saved(tmp_path / "a.ckpt", other)
    kept, weights = build(ckpt_path=whole), dict(other.model.named_parameters())
    name, shadow = next(iter(kept.model_ema.m_name2s_name.items()))
    assert torch.equal(getattr(kept.model_ema, shadow), getattr(other.model_ema, shadow))
    assert not torch.equal(getattr(kept.model_ema, shadow), weights[name]) and kept.model_ema.num_updates == 7
    anew = build(ckpt_path=whole, reset_ema=True, ignore_keys=["nothing."])
    assert torch.equal(getattr(anew.model_ema, shadow), weights[name]) and anew.model_ema.num_updates == 0
    again = build(ckpt_path=whole, reset_num_ema_updates=True)
    assert torch.equal(getattr(again.model_ema, shadow), getattr(other.model_ema, shadow))
    assert again.model_ema.num_updates == 0
    with pytest.warns(UserWarning, match="no averaged weights; the network's own are used"):
        without = build(ckpt_path=whole, ignore_keys=["model_ema"])
    assert torch.equal(getattr(without.model_ema, shadow), weights[name])
    with pytest.raises(ValueError, match="reset_ema and reset_num_ema_updates need use_ema=True"):
        build(use_ema=False, reset_ema=True)


def test_a_weight_of_another_shape_is_named_with_the_remedy(other, tmp_path):
    weights = {**other.state_dict(), FIRST_LAYER: randn(32, 5, 3, 3)}
    path, model = saved(tmp_path / "a.ckpt", weights), build()
    with pytest.raises(CheckpointError, match=r"a.ckpt'.*input_blocks.0.0.weight \(32, 5, 3, 3\).*with ignore_keys"):
        model.init_from_ckpt(path)
    assert equal(model, build())
    model.init_from_ckpt(path, [FIRST_LAYER])
    assert equal(model, other, "cond_stage_model.")


def test_a_file_of_which_nothing_fits_is_an_error(tmp_path):
    path = saved(tmp_path / "a.ckpt", {"double_blocks.0.img_attn.x": randn(2)})
    with pytest.raises(CheckpointError, match="has nothing that this model has .it looks like a Flux"):
        build(ckpt_path=path)
    with pytest.raises(FileNotFoundError, match="b.ckpt"):
        build(ckpt_path=str(tmp_path / "b.ckpt"))


def test_a_layer_that_takes_more_channels_begins_as_if_they_were_not_there(other, tmp_path):
    """As InstructPix2Pix begins from Stable Diffusion: with the picture to edit beside the latents."""

    class Edits(LatentDiffusion):
        finetune_keys = (FIRST_LAYER,)

    unet = {**UNET, "params": {**UNET["params"], "in_channels": 6}}
    settings = {"unet_config": unet, "conditioning_key": "hybrid", "use_ema": False}
    model = build(Edits, **settings, ckpt_path=saved(tmp_path / "a.ckpt", other))
    x, t, text = randn(2, 3, 4, 4), torch.tensor([5, 90]), randn(2, 3, 8)
    plain = other.apply_model(x, t, text)
    for beside in (torch.zeros(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)):
        edited = model.apply_model(x, t, {"c_concat": [beside], "c_crossattn": [text]})
        torch.testing.assert_close(edited, plain)
    with pytest.raises(CheckpointError, match="of another shape"):
        build(**settings, ckpt_path=str(tmp_path / "a.ckpt"))


def test_inpainting_begins_from_a_model_without_a_mask(other, tmp_path):
    unet = {**UNET, "params": {**UNET["params"], "in_channels": 7}}
    settings = {"unet_config": unet, "conditioning_key": "hybrid", "ckpt_path": saved(tmp_path / "a.ckpt", other)}
    model = build(LatentInpaintDiffusion, **settings)
    weight = model.state_dict()[FIRST_LAYER]
    assert torch.equal(weight[:, :3], other.state_dict()[FIRST_LAYER]) and not weight[:, 3:].any()
    average = "model_ema.diffusion_modelinput_blocks00weight"
    assert not model.state_dict()[average][:, 3:].any() and model.state_dict()[average].any()
    with pytest.raises(CheckpointError, match="of another shape"):
        build(LatentInpaintDiffusion, **settings, finetune_keys=None)


def test_a_measured_scale_is_taken_and_one_that_is_missing_is_measured(tmp_path):
    model = build(scale_by_std=True)
    model.scale_factor.fill_(0.25)
    whole = saved(tmp_path / "a.ckpt", model)
    part = saved(tmp_path / "b.ckpt", {k: v for k, v in model.state_dict().items() if k != "scale_factor"})
    batch = {"jpg": randn(4, 4, 4, 3), "txt": ["a"] * 4}
    for path, expected in ((whole, 0.25), (part, 1 / batch["jpg"].std().item())):
        begun = build(scale_by_std=True, ckpt_path=path)
        begun.on_train_batch_start(batch, 0)
        assert begun.scale_factor.item() == pytest.approx(expected, rel=1e-5)


def test_the_constructors_positions_are_the_originals():
    from test_conditioning import CAPTIONS, IDENTITY

    positions = IDENTITY, CAPTIONS, 1, "txt", True, False, "tokenize", None, 0.5, True, UNET, 50, "sqrt_linear"
    model = LatentDiffusion(*positions, use_ema=False)
    assert model.cond_stage_key == "txt" and model.cond_stage_trainable and model.cond_stage_forward == "tokenize"
    assert model.model.conditioning_key == "crossattn" and not model.concat_mode
    assert model.scale_factor == 0.5 and model.scale_by_std and "scale_factor" in model.state_dict()
    assert model.num_timesteps == 50 and model.betas.diff().std() < 1e-6


def test_stages_may_be_built_by_a_subclass():
    class Own(LatentDiffusion):
        def instantiate_first_stage(self, config):
            super().instantiate_first_stage({"target": "ldm.models.autoencoder.IdentityFirstStage"})
            self.first_stage_model.mine = config

        def instantiate_cond_stage(self, config):
            self.cond_stage_model = torch.nn.Identity()

    model = conditioned(Own, "first", "cond")
    assert model.first_stage_model.mine == "first" and model.get_learned_conditioning("x") == "x"


def test_a_network_that_answers_with_more_is_asked_for_the_first():
    class Talkative(torch.nn.Module):
        def forward(self, x, t, context):
            return 2 * x, "ids"

    model = conditioned()
    model.model.diffusion_model = Talkative()
    x, t, c = randn(2, 3, 4, 4), torch.tensor([1, 2]), randn(2, 1, 8)
    assert torch.equal(model.apply_model(x, t, c), 2 * x)
    assert model.apply_model(x, t, c, return_ids=True)[1] == "ids"
