"""scripts/txt2img.py on models of other kinds: unconditional, class-conditional, and those that need a picture."""

import copy
from pathlib import Path

import torch
from _txt2img import CONFIG, difference, draw
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ldm.util import instantiate_from_config


def written(folder, change, name="other"):
    """The flags that choose a tiny model that differs from CONFIG in its params, with random weights."""
    config = copy.deepcopy(CONFIG)
    change(config["model"]["params"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = instantiate_from_config(config["model"]).state_dict()
    weights = {k: torch.randn_like(v) * 0.1 if v.ndim > 1 and not v.any() else v for k, v in weights.items()}
    OmegaConf.save(OmegaConf.create(config), folder / f"{name}.yaml")
    save_file(weights, folder / f"{name}.safetensors")
    return ["--config", str(folder / f"{name}.yaml"), "--ckpt", str(folder / f"{name}.safetensors"), "--device", "cpu"]


def unconditional(params):
    params["cond_stage_config"] = "__is_unconditional__"
    del params["conditioning_key"]
    unet = params["unet_config"]["params"]
    for key in ("use_spatial_transformer", "transformer_depth", "context_dim"):
        del unet[key]


def of_classes(params):
    target = "ldm.modules.encoders.modules.ClassEmbedder"
    params["cond_stage_config"] = {"target": target, "params": {"n_classes": 11, "embed_dim": 16}}


def beside_a_picture(params):
    params["conditioning_key"] = "hybrid"
    params["unet_config"]["params"]["in_channels"] = 9


def pictures(run, model, *flags, out="out"):
    status, _, said = run("--n_iter", 1, "--skip_grid", "--outdir", out, *flags, model=model)
    assert status == 0, said
    return len(list(Path(out, "samples").glob("*.png"))), said


def test_an_unconditional_model_draws_without_a_prompt(run, tmp_path):
    assert pictures(run, written(tmp_path, unconditional), "--n_samples", 2) == (2, [])


def test_an_unconditional_model_says_that_a_prompt_has_no_effect(run, tmp_path):
    model = written(tmp_path, unconditional)
    for k, flags in enumerate((["--prompt", "a circle"], ["--scale", 5])):
        count, said = pictures(run, model, "--n_samples", 1, *flags, out=f"{k}")
        assert count == 1 and "told nothing" in said[0]


def test_a_class_conditional_model_draws_the_class_that_the_prompt_numbers(run, tmp_path):
    model = written(tmp_path, of_classes)

    def drawn(*flags, out):
        return draw(lambda *given: run(*given, model=model), "--n_samples", 1, "--n_iter", 1, *flags, out=out)[0]

    third = drawn("--prompt", "3", out="a")
    assert difference(third, drawn("--prompt", "4", out="b")) > 2
    assert difference(third, drawn("--prompt", "3", "--negative_prompt", "10", out="c")) == 0  # 10: no class, the last
    status, _, said = run("--prompt", "a dog", model=model)
    assert status == 2 and "class number" in said[0] and "'a dog'" in said[0]
    status, _, said = run("--prompt", "11", model=model)
    assert status == 2 and "class 11 is not there; the model knows 0 to 10" in said[0]


def test_a_model_that_is_shown_a_picture_is_named_before_it_is_read(run, tmp_path):
    status, _, said = run("--prompt", "a dog", model=written(tmp_path, beside_a_picture))
    assert status == 2 and "shown a picture beside the noise" in said[0] and "'hybrid'" in said[0]


def test_averaged_weights_are_drawn_with_on_request(run, tiny, tmp_path):
    from ldm.checkpoint import load_state_dict

    weights = load_state_dict(tiny[3])
    network = {key: value for key, value in weights.items() if key.startswith("model.")}
    averages = {"model_ema." + key[6:].replace(".", ""): value * 1.1 for key, value in network.items()}
    save_file({**weights, **averages}, tmp_path / "both.safetensors")
    model = [*tiny[:3], str(tmp_path / "both.safetensors"), *tiny[4:]]

    def drawn(*flags, out):
        return draw(lambda *given: run(*given, model=model), "--n_samples", 1, "--n_iter", 1, *flags, out=out)[0]

    own, plain, averaged = draw(run, "--n_samples", 1, "--n_iter", 1)[0], drawn(out="b"), drawn("--ema", out="c")
    assert difference(own, plain) == 0 and difference(own, averaged) > 0
    status, _, said = run("--ema")
    assert status == 2 and "holds no averaged weights" in said[0]


def test_ckpt_alone_is_enough_for_the_bundled_model_under_another_name(run, tmp_path):
    from _config import BUNDLED_CKPT

    (tmp_path / "mine.ckpt").symlink_to(BUNDLED_CKPT)
    model = ["--ckpt", str(tmp_path / "mine.ckpt"), "--device", "cpu"]
    assert pictures(run, model, "--prompt", "a red circle", "--n_samples", 1, "--ddim_steps", 2)[0] == 1


def test_ckpt_alone_is_an_error_for_a_model_that_is_not_known(run, tiny):
    status, _, said = run("--prompt", "a red circle", model=tiny[2:])
    assert status == 2 and "none of the released models" in said[0] and "give the config" in said[0]


def test_a_lora_is_named(run, tmp_path):
    save_file({"lora_unet_mid_block_attentions_0.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "style.safetensors")
    status, _, said = run("--prompt", "a dog", model=["--ckpt", str(tmp_path / "style.safetensors")])
    assert status == 2 and "LoRA" in said[0]
