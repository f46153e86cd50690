"""Small pipelines of diffusers with random weights, shaped as Stable Diffusion 1 and 2 are; and runs of them."""

import gzip
import os
from functools import cache
from importlib import resources

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of the hub is imported: nothing here may ask it

import torch
from _networks import randn

PROMPT = "a photo of an astronaut riding a horse on mars"
SIZE = 64  # pixels
STEPS = 10


@cache
def _vocabulary():
    """CLIP's tokens in order, and its merges, from the file of merges that CLIP was published with."""
    lines = (resources.files("ldm.assets") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = [tuple(line.split()) for line in gzip.decompress(lines).decode().split("\n")[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]
    words = [*letters, *(c + "</w>" for c in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, merges


def tokenizer(pad="<|endoftext|>"):
    from transformers import CLIPTokenizer

    vocab, merges = _vocabulary()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), model_max_length=77, pad_token=pad)


def randomized(model, seed):
    """No weight at zero or one: else parts that start there would change nothing."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if p.ndim > 1:
                p.copy_(r if ".embeddings." in f".{name}" else r / p[0].numel() ** 0.5)
            else:
                p.copy_(1 + 0.1 * r if name.endswith("weight") else 0.1 * r)
    return model.eval().requires_grad_(False)


def unet(**options):
    from diffusers import UNet2DConditionModel

    options = {
        "sample_size": 8,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    } | options
    return randomized(UNet2DConditionModel(**options), 1)


def vae(**options):
    from diffusers import AutoencoderKL

    options = {
        "block_out_channels": (32, 32, 64, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "sample_size": SIZE,
    } | options
    return randomized(AutoencoderKL(**options), 2)


def text_encoder(**options):
    from transformers import CLIPTextConfig, CLIPTextModel

    options = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    } | options
    return randomized(CLIPTextModel(CLIPTextConfig(**options)), 3)


def scheduler(**options):
    from diffusers import DDIMScheduler

    options = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    } | options
    return DDIMScheduler(**options)


# As Stable Diffusion 2: linear projections, heads of one width, a text encoder without its last layer, another padding.
V2 = {
    "unet": {"use_linear_projection": True, "attention_head_dim": [2, 4, 4]},
    "text_encoder": {"hidden_act": "gelu", "num_hidden_layers": 23},
    "scheduler": {"prediction_type": "v_prediction"},
    "tokenizer": {"pad": "!"},
}


def pipeline(version="v1", **options):
    """A StableDiffusionPipeline; `options`: by part, what differs from the version's."""
    from diffusers import StableDiffusionPipeline

    base = {"v1": {}, "v2-v": V2}[version]
    makers = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "scheduler": scheduler, "tokenizer": tokenizer}
    parts = {name: make(**base.get(name, {}) | options.get(name, {})) for name, make in makers.items()}
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.version = version
    return pipe


def x_T():
    return randn(1, 4, SIZE // 8, SIZE // 8, seed=7)


def their_picture(pipe, scale=7.5):
    """(H, W, 3) in grey levels 0…255, not rounded."""
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        PROMPT, latents=x_T(), num_inference_steps=STEPS, guidance_scale=scale, height=SIZE, width=SIZE,
        output_type="np",
    )  # fmt: skip
    return torch.from_numpy(out.images[0]) * 255


def our_timesteps(model):
    """In the order of the steps."""
    from ldm.sampling import DDIMSampler

    sampler = DDIMSampler(model)
    sampler.make_schedule(STEPS, verbose=False)
    return [int(t) for t in reversed(sampler.ddim_timesteps)]


def our_picture(model, scale=7.5):
    """The same with this library: CompVis' sampler at its defaults."""
    from ldm.sampling import DDIMSampler

    latents, _ = DDIMSampler(model).sample(
        STEPS, 1, x_T().shape[1:], x_T=x_T(), eta=0.0, progress=False,
        conditioning=model.get_learned_conditioning([PROMPT]),
        unconditional_conditioning=model.get_learned_conditioning([""]),
        unconditional_guidance_scale=scale,
    )  # fmt: skip
    picture = model.decode_first_stage(latents)[0].permute(1, 2, 0)
    return ((picture + 1) / 2).clamp(0, 1) * 255


def assert_networks_agree(model, pipe):
    context, x, t = randn(2, 77, 32), randn(2, 4, 8, 8, seed=1), torch.tensor([3, 901])
    close(model.apply_model(x, t, context), pipe.unet(x, t, context).sample)
    pictures = randn(2, 3, SIZE, SIZE, seed=2)
    posterior = pipe.vae.encode(pictures).latent_dist
    ours = model.encode_first_stage(pictures)
    close(ours.mean, posterior.mean)
    close(ours.std, posterior.std)
    scale = pipe.vae.config.scaling_factor
    close(model.decode_first_stage(posterior.mean * scale), pipe.vae.decode(posterior.mean).sample)
    # No "!": it pads Stable Diffusion 2's prompts, so transformers takes it for padding wherever it stands.
    prompts = [PROMPT, "", "Éléphants, 大象 & 🐘? " * 20]
    tokens = pipe.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    close(model.get_learned_conditioning(prompts), pipe.text_encoder(tokens.input_ids)[0])


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def assert_pictures_agree(model, pipe):
    ours, theirs = our_picture(model), their_picture(pipe)
    assert theirs.std() > 20  # a picture of something
    assert (ours.round() - theirs.round()).abs().max() <= 1


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
