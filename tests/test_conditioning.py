"""What reaches the network by each conditioning key, and what a batch of a data loader becomes."""

import pytest
import torch
import torch.nn.functional as F
from _networks import randn
from _txt2img import CONFIG
from torch import nn

from ldm.models.diffusion.ddpm import (
    LatentDepth2ImageDiffusion,
    LatentDiffusion,
    LatentInpaintDiffusion,
    LatentUpscaleDiffusion,
)
from ldm.modules.diffusionmodules.upscaling import (
    AbstractLowScaleModel,
    ImageConcatWithNoiseAugmentation,
    SimpleImageConcat,
)
from ldm.sampling import DDIMSampler

IDENTITY = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
HALVING = CONFIG["model"]["params"]["first_stage_config"]  # an autoencoder that halves the size
CAPTIONS = {
    "target": "ldm.modules.encoders.caption.CaptionEncoder",
    "params": {"vocabulary": ["a", "star"], "width": 8, "layers": 1, "heads": 2, "max_length": 3},
}
LABELS = {
    "target": "ldm.modules.encoders.modules.ClassEmbedder",
    "params": {"n_classes": 5, "embed_dim": 8, "key": "class_label"},
}
NOISY = {
    "target": "ldm.modules.diffusionmodules.upscaling.ImageConcatWithNoiseAugmentation",
    "params": {"noise_schedule_config": {"linear_start": 1e-4, "linear_end": 2e-2}, "max_noise_level": 350},
}


class Recorder(nn.Module):
    """In place of the network: keeps what it is given, and answers with a bit of everything, sample by sample."""

    def forward(self, x, t, context=None, y=None):
        self.x, self.context, self.y = x, context, y
        more = [part.float().reshape(len(x), -1).mean(1) for part in (context, y) if part is not None]
        return 0.1 * x[:, :3] + 0.01 * sum(more, x.mean((1, 2, 3))).view(-1, 1, 1, 1)


def build(cls=LatentDiffusion, first_stage=IDENTITY, cond_stage=CAPTIONS, **settings):
    torch.manual_seed(0)
    defaults = {"conditioning_key": "crossattn", "cond_stage_key": "txt", "first_stage_key": "jpg", "channels": 3}
    model = cls(
        first_stage_config=first_stage,
        cond_stage_config=cond_stage,
        unet_config={"target": "torch.nn.Identity"},
        use_ema=False,
        **{**defaults, **settings},
    )
    model.model.diffusion_model = Recorder()
    return model.eval()


# --- the network's inputs

X, T = randn(2, 3, 4, 4), torch.tensor([5, 900])
CONCAT, TEXT, LEVEL = randn(2, 1, 4, 4, seed=1), randn(2, 2, 8, seed=2), torch.tensor([3, 20])
BESIDE = torch.cat([X, CONCAT], 1)
KEYS = {  # conditioning_key → what is given, and the network's x, context and y
    None: ({}, X, None, None),
    "concat": ({"c_concat": [CONCAT]}, BESIDE, None, None),
    "crossattn": ({"c_crossattn": [TEXT]}, X, TEXT, None),
    "hybrid": ({"c_concat": [CONCAT], "c_crossattn": [TEXT]}, BESIDE, TEXT, None),
    "adm": ({"c_crossattn": [LEVEL]}, X, None, LEVEL),
    "crossattn-adm": ({"c_crossattn": [TEXT], "c_adm": LEVEL}, X, TEXT, LEVEL),
    "hybrid-adm": ({"c_concat": [CONCAT], "c_crossattn": [TEXT], "c_adm": LEVEL}, BESIDE, TEXT, LEVEL),
}


def by_key(key):
    return build(conditioning_key=key, cond_stage=CAPTIONS if key else "__is_unconditional__")


@pytest.mark.parametrize("key", KEYS)
def test_every_conditioning_goes_where_its_key_says(key):
    model, (given, *wanted) = by_key(key), KEYS[key]
    tensors = {name: part[0] if isinstance(part, list) else part for name, part in given.items()}
    lists = {name: [part] for name, part in tensors.items()}
    for cond in (given, tensors, lists):
        model.apply_model(X, T, cond)
        seen = model.model.diffusion_model
        for got, due in zip((seen.x, seen.context, seen.y), wanted):
            assert got is due is None or torch.equal(got, due)


@pytest.mark.parametrize("key", KEYS)
def test_a_conditioning_that_is_missing_or_idle_is_named(key):
    model, given = by_key(key), KEYS[key][0]
    for name in ("c_concat", "c_crossattn", "c_adm"):
        if name in given:
            with pytest.raises(ValueError, match=f"conditioning_key={key!r} needs {name}: pass it in"):
                model.apply_model(X, T, {k: v for k, v in given.items() if k != name})
        else:
            with pytest.raises(ValueError, match=f"conditioning_key={key!r} does not take {name}: leave it out"):
                model.apply_model(X, T, {**given, name: [TEXT]})


def test_several_pictures_and_texts_are_joined():
    model = by_key("hybrid")
    model.apply_model(X, T, {"c_concat": [CONCAT, X], "c_crossattn": [TEXT, TEXT + 1]})
    seen = model.model.diffusion_model
    assert torch.equal(seen.x, torch.cat([X, CONCAT, X], 1))
    assert torch.equal(seen.context, torch.cat([TEXT, TEXT + 1], 1))


def test_one_context_per_block_is_refused():
    config = {"target": "torch.nn.Identity", "sequential_crossattn": True}
    with pytest.raises(ValueError, match="sequential_crossattn=True.*set it to false"):
        LatentDiffusion(IDENTITY, CAPTIONS, unet_config=config, use_ema=False)


def test_guidance_pairs_noise_levels_as_it_pairs_text_and_pictures():
    model, cond = by_key("hybrid-adm"), KEYS["hybrid-adm"][0]
    uncond, results = {**cond, "c_crossattn": [TEXT * 0]}, []
    for batched in (False, True):
        guided = {"unconditional_conditioning": uncond, "unconditional_guidance_scale": 4.0, "batch_guidance": batched}
        results.append(DDIMSampler(model).sample(3, 2, (3, 4, 4), cond, x_T=X, verbose=False, **guided)[0])
        assert torch.equal(model.model.diffusion_model.y, torch.cat([LEVEL, LEVEL]) if batched else LEVEL)
    torch.testing.assert_close(*results)


# --- what the user says


def test_captions_lists_of_them_and_labels_are_encoded():
    model = build()
    a = model.get_learned_conditioning(["a star", "a"])
    torch.testing.assert_close(a, model.cond_stage_model(["a star", "a"]))
    by_label = build(cond_stage=LABELS, cond_stage_key="class_label")
    encoded = by_label.get_learned_conditioning({"class_label": torch.tensor([4])})
    assert torch.equal(encoded, by_label.cond_stage_model.embedding.weight[4].view(1, 1, 8))
    tokens = build(cond_stage_forward="tokenize").get_learned_conditioning(["a star"])
    assert tokens.tolist() == [[2, 3, 0]]


def test_the_conditioning_that_says_nothing():
    model = build()
    empty = model.get_learned_conditioning(["", "", ""])
    torch.testing.assert_close(model.get_unconditional_conditioning(3), empty)
    torch.testing.assert_close(model.get_unconditional_conditioning(3, ""), empty)
    star = model.get_learned_conditioning(["a star", "a star"])
    torch.testing.assert_close(model.get_unconditional_conditioning(2, ["a star"]), star)
    by_label = build(cond_stage=LABELS, cond_stage_key="class_label")
    last = by_label.get_unconditional_conditioning(2, {"class_label": torch.tensor([4])})
    assert torch.equal(last, by_label.cond_stage_model.embedding.weight[4].expand(2, 1, 8))
    with pytest.raises(ValueError, match="'coordinates'.*pass null_label"):
        build(cond_stage_key="coordinates").get_unconditional_conditioning(2)


def test_a_batch_becomes_latents_and_conditioning():
    model = build(scale_factor=0.5)
    pictures = randn(3, 4, 4, 3)
    batch = {"jpg": pictures, "txt": ["a", "star", "a star"]}
    z, c = model.get_input(batch, "jpg")
    torch.testing.assert_close(z, 0.5 * pictures.permute(0, 3, 1, 2))
    torch.testing.assert_close(c, model.get_learned_conditioning(batch["txt"]))
    z, c, x, again, x_again, said = model.get_input(
        batch, "jpg", return_first_stage_outputs=True, return_x=True, return_original_cond=True, bs=2
    )
    assert len(z) == len(c) == len(x) == 2 and said == ["a", "star"]
    torch.testing.assert_close(x, 2 * z)
    torch.testing.assert_close(again, x)
    assert torch.equal(x_again, x)
    with pytest.raises(KeyError, match="no 'png', only jpg, txt"):
        model.get_input(batch, "png")


def test_a_batch_keeps_what_a_trained_conditioner_will_encode():
    model = build(cond_stage=LABELS, cond_stage_key="class_label", cond_stage_trainable=True)
    batch = {"jpg": randn(2, 4, 4, 3), "class_label": torch.tensor([1, 2])}
    c = model.get_input(batch, "jpg")[1]
    assert torch.equal(c["class_label"], batch["class_label"])
    encoded = model.get_input(batch, "jpg", force_c_encode=True)[1]
    torch.testing.assert_close(model.get_learned_conditioning(c), encoded)


def test_pictures_condition_by_way_of_the_first_stage():
    model = build(cond_stage="__is_first_stage__", conditioning_key="concat", cond_stage_key="masked_image")
    batch = {"jpg": randn(2, 4, 4, 3), "masked_image": randn(2, 4, 4)}
    c = model.get_input(batch, "jpg")[1]
    assert torch.equal(c, batch["masked_image"][:, None])
    assert not [key for key in model.state_dict() if key.startswith("cond_stage_model.")]
    assert build(cond_stage="__is_unconditional__", conditioning_key=None).get_input(batch, "jpg")[1] is None


# --- models that are shown a picture

BATCH = {"jpg": randn(2, 8, 8, 3), "txt": ["a", "a star"]}


def test_inpainting_sees_the_mask_and_the_latent_of_the_rest():
    model = build(LatentInpaintDiffusion, HALVING, conditioning_key="hybrid", scale_factor=0.5, finetune_keys=None)
    mask = torch.zeros(2, 8, 8, 1)
    mask[:, 2:6, :4] = 1
    batch = {**BATCH, "mask": mask, "masked_image": BATCH["jpg"] * (1 - mask)}
    model.first_stage_model.quant_conv.bias.data[4:] = -60  # no variance: the posterior's sample is its mean
    z, c = model.get_input(batch, "jpg")
    (shown,) = c["c_concat"]
    assert z.shape == (2, 4, 4, 4) and shown.shape == (2, 5, 4, 4)
    assert torch.equal(shown[:, :1], mask.permute(0, 3, 1, 2)[:, :, ::2, ::2])
    rest = model.first_stage_model.encode(batch["masked_image"].permute(0, 3, 1, 2)).mode()
    torch.testing.assert_close(shown[:, 1:], 0.5 * rest, rtol=0, atol=1e-5)
    torch.testing.assert_close(c["c_crossattn"][0], model.get_learned_conditioning(BATCH["txt"]))
    torch.testing.assert_close(model.concat_conditioning(batch, (4, 4), bs=1), shown[:1])
    assert len(model.get_input(batch, "jpg", return_first_stage_outputs=True)) == 5
    with pytest.raises(ValueError, match="masked_image_key='jpg' must be one of concat_keys"):
        build(LatentInpaintDiffusion, masked_image_key="jpg")


def test_depth_maps_are_given_and_brought_to_the_range_and_size_of_the_latents():
    config = {"target": "ldm.modules.midas.api.MiDaSInference", "params": {"model_type": "dpt_hybrid"}}
    model = build(LatentDepth2ImageDiffusion, HALVING, conditioning_key="hybrid", depth_stage_config=config)
    depth = 1000 * randn(2, 16, 16).abs()
    (shown,) = model.get_input({**BATCH, "midas_in": depth}, "jpg")[1]["c_concat"]
    assert shown.shape == (2, 1, 4, 4)
    for one in shown:
        assert one.min() == -1 and one.max().item() == pytest.approx(1, abs=1e-5)
    small = F.interpolate(depth[:, None], (4, 4), mode="bicubic")
    assert torch.equal(shown.flatten(1).argsort(), small.flatten(1).argsort())
    with_channel = model.concat_conditioning({"midas_in": depth[:, None]}, (4, 4))
    assert torch.equal(with_channel, shown)
    assert torch.equal(model.concat_conditioning({"midas_in": depth * 0}, (4, 4)), -torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"'midas_in' has shape \(2, 3, 8, 8\): give depth maps"):
        model.concat_conditioning({"midas_in": torch.zeros(2, 3, 8, 8)}, (4, 4))


def test_an_upscaler_sees_the_small_picture_with_noise_and_is_told_its_level():
    model = build(
        LatentUpscaleDiffusion, HALVING, conditioning_key="hybrid-adm", low_scale_config=NOISY, low_scale_key="lr",
        noise_level_key="level",
    )  # fmt: skip
    batch = {**BATCH, "lr": randn(2, 4, 4, 3, seed=1), "level": torch.tensor([0, 300])}
    c = model.get_input(batch, "jpg")[1]
    error = (c["c_concat"][0] - batch["lr"].permute(0, 3, 1, 2)).square().mean((1, 2, 3))
    assert torch.equal(c["c_adm"], batch["level"]) and error[0] < 1e-3 and error[1] > 0.1
    *_, said, small, same, level = model.get_input(batch, "jpg", log_mode=True)
    assert small.shape == same.shape == (2, 3, 4, 4) and said == BATCH["txt"] and len(level) == 2


def test_the_noise_of_the_small_picture_has_the_moments_of_its_level():
    noisy = ImageConcatWithNoiseAugmentation({"linear_start": 1e-4, "linear_end": 2e-2}, max_noise_level=350)
    x, level = torch.full((4000, 3, 2, 2), 0.7), torch.full((4000,), 200)
    z, same = noisy(x, level)
    a = noisy.alphas_cumprod[200].item()
    assert torch.equal(same, level)
    assert z.mean().item() == pytest.approx(0.7 * a**0.5, abs=0.02)
    assert z.var().item() == pytest.approx(1 - a, rel=0.05)
    drawn = noisy(x)[1]
    assert drawn.min() >= 0 and 330 < drawn.max() < 350
    assert noisy.half().alphas_cumprod.dtype == torch.float32


@pytest.mark.parametrize("level", [torch.tensor([351, 0]), torch.tensor([-1, 0]), torch.tensor([3]), torch.ones(2)])
def test_a_noise_level_that_the_network_does_not_know_is_named(level):
    with pytest.raises(ValueError, match=r"noise_level is tensor.*from 0 to 350 for each of the 2 pictures"):
        ImageConcatWithNoiseAugmentation({}, max_noise_level=350)(torch.zeros(2, 3, 4, 4), level)


def test_without_augmentation_the_picture_passes_as_it_is():
    x = randn(2, 3, 4, 4)
    assert AbstractLowScaleModel()(x) == (x, None)
    shown, level = SimpleImageConcat()(x)
    assert shown is x and level.tolist() == [0, 0]


@pytest.mark.parametrize("cls", [LatentInpaintDiffusion, LatentDepth2ImageDiffusion, LatentUpscaleDiffusion])
def test_a_conditioner_cannot_be_trained_beside_a_picture(cls):
    low_scale = {"low_scale_config": NOISY} if cls is LatentUpscaleDiffusion else {}
    with pytest.raises(ValueError, match=f"cond_stage_trainable=True: {cls.__name__} .*set it to false"):
        build(cls, cond_stage_trainable=True, **low_scale)
