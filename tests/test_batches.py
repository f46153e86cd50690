"""What a batch of a data loader becomes, where the obvious cases would hide a mistake."""

import pytest
import torch
from _networks import randn
from test_conditioning import CAPTIONS, HALVING, LABELS, NOISY, build

from ldm.models.diffusion.ddpm import LatentInpaintDiffusion, LatentUpscaleDiffusion

PICTURES = randn(2, 8, 8, 3)


def noisy_halving(**settings):
    """A model whose autoencoder halves the size and whose posterior has a standard deviation of 1."""
    model = build(first_stage=HALVING, **settings)
    model.first_stage_model.quant_conv.weight.data[4:] = 0
    model.first_stage_model.quant_conv.bias.data[4:] = 0
    return model


def test_latents_are_samples_and_a_picture_that_conditions_is_encoded_to_its_mean():
    model = noisy_halving(cond_stage="__is_first_stage__", conditioning_key="concat", cond_stage_key="masked_image")
    batch = {"jpg": PICTURES, "masked_image": PICTURES}
    z, c = model.get_input(batch, "jpg")
    mean = model.encode_first_stage(PICTURES.permute(0, 3, 1, 2)).mode()
    assert 0.8 < (z - mean).std() < 1.2
    torch.testing.assert_close(c, mean)


def test_the_pictures_come_before_their_reconstruction():
    model = noisy_halving(cond_stage=CAPTIONS)
    batch = {"jpg": PICTURES, "txt": ["a", "star"]}
    z, _, x, again = model.get_input(batch, "jpg", return_first_stage_outputs=True)
    assert torch.equal(x, PICTURES.permute(0, 3, 1, 2))
    torch.testing.assert_close(again, model.decode_first_stage(z))


def test_another_key_may_be_named_to_condition_by():
    model = build()
    batch = {"jpg": PICTURES, "txt": ["a", "star"], "caption": ["star", "a"]}
    c = model.get_input(batch, "jpg", cond_key="caption")[1]
    torch.testing.assert_close(c, model.get_learned_conditioning(["star", "a"]))


@pytest.mark.parametrize("key", ["class_label", "cls"])
def test_labels_reach_an_encoder_that_takes_them_by_another_key(key):
    """ClassEmbedder's own key is `class` unless told otherwise."""
    labels = torch.tensor([1, 3])
    model = build(cond_stage=LABELS, cond_stage_key=key)  # its key is class_label
    c = model.get_input({"jpg": PICTURES, key: labels, "class_label": labels}, "jpg")[1]
    torch.testing.assert_close(c, model.cond_stage_model(labels))


def test_what_stands_for_no_class_is_the_last():
    model = build(cond_stage=LABELS, cond_stage_key="class_label")
    torch.testing.assert_close(model.get_unconditional_conditioning(3), model.cond_stage_model([4, 4, 4]))


def test_float64_is_narrowed_before_it_goes_to_the_device():
    assert build().entry({"x": PICTURES.double().numpy()}, "x").dtype == torch.float32


def test_a_mask_is_not_blurred():
    """Its edge falls inside a pixel of the latent: bilinear resizing would give a half there."""
    model = build(LatentInpaintDiffusion, HALVING, conditioning_key="hybrid")
    mask = torch.zeros(2, 8, 8, 1)
    mask[:, 3:6, :5] = 1
    shown = model.concat_conditioning({"mask": mask, "masked_image": PICTURES}, (4, 4))
    assert set(shown[:, 0].flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(shown[:, 0], mask[:, ::2, ::2, 0])


def test_an_upscaler_is_told_the_text_and_draws_levels_from_none_on():
    model = build(
        LatentUpscaleDiffusion, HALVING, conditioning_key="hybrid-adm", low_scale_key="lr",
        low_scale_config={**NOISY, "params": {**NOISY["params"], "max_noise_level": 2}},
    )  # fmt: skip
    batch = {"jpg": randn(64, 8, 8, 3), "txt": ["star"] * 64, "lr": randn(64, 4, 4, 3)}
    c = model.get_input(batch, "jpg")[1]
    torch.testing.assert_close(c["c_crossattn"][0], model.get_learned_conditioning(batch["txt"]))
    assert set(c["c_adm"].tolist()) == {0, 1}
