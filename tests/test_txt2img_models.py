"""scripts/txt2img.py on models of other kinds: unconditional, class-conditional, and those that need a picture."""

from pathlib import Path

import _cli
import pytest
import score_shapes
import torch
import train_shapes
from _script_models import beside_a_picture, of_as_many_classes_as_imagenet, of_classes, unconditional, written
from _txt2img import difference, draw
from safetensors.torch import save_file


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
    assert difference(third, drawn("--prompt", "3", "--negative_prompt", "1000", out="c")) == 0  # no class, the last


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "give a class number with --prompt, from 0 to 1000"),
        (["--prompt", "a dog"], "give a class number as the prompt, such as 207, not 'a dog'"),
        (["--prompt", ""], "such as 207, not ''"),
        (["--prompt", "1001"], "class 1001 is not there; the model knows 0 to 1000"),
        (["--prompt", str(2**64)], "class 184467440737095516… is not there"),
        (["--prompt", "1" * 5000], "class 111111111111111111… is not there"),
        (["--prompt", "3", "--negative_prompt", "cat"], "not 'cat'"),
        (["--from-file", "prompts.txt"], "not 'x'"),
        (["--prompt", "3", "model.params.cond_stage_config.params.n_classes=many"], "n_classes is 'many'; give an int"),
    ],
)
def test_what_is_no_class_is_said_before_the_weights_are_read(flags, said, run, tmp_path, monkeypatch):
    model = written(tmp_path, of_classes)
    Path("prompts.txt").write_text("1\nx\n")
    monkeypatch.setattr("ldm.checkpoint.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    status, _, err = run(*flags, model=model)
    assert status == 2 and len(err) == 1 and said in err[0]


def test_guidance_needs_a_class_that_stands_for_none(run, tmp_path):
    model = written(tmp_path, of_as_many_classes_as_imagenet)
    flags = ["--prompt", "3", "--n_samples", 1, "--n_iter", 1]
    status, _, err = run(*flags, model=model)
    assert status == 2 and "none of this model's 1000 classes is known to stand for no class" in err[0]
    assert "--negative_prompt" in err[0] and "--scale 1" in err[0] and not list(Path().rglob("*.png"))
    assert pictures(run, model, *flags, "--scale", 1, out="a") == (1, [])
    assert pictures(run, model, *flags, "--negative_prompt", "999", out="b") == (1, [])
    count, said = pictures(run, model, *flags, "--negative_prompt", "a dog", "--scale", 1, out="c")
    assert count == 1 and "no effect with --scale 1" in said[0]


@pytest.mark.parametrize("change, told", [(of_classes, "a class number"), (unconditional, "nothing")])
def test_the_score_is_of_models_that_read_captions(change, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ldm.checkpoint.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match="2"):
        _cli.run(score_shapes.main, "score_shapes", written(tmp_path, change))
    assert f"asked for by captions, but this model is told {told}" in capsys.readouterr().err


def test_a_table_without_a_place_is_named_before_it_is_made(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ldm.checkpoint.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for path, said in ((tmp_path / "no" / "a.json", "no file can be made in"), (tmp_path, "is a folder")):
        with pytest.raises(SystemExit, match="2"):
            _cli.run(score_shapes.main, "score_shapes", [*tiny, "--json", str(path)])
        assert "--json" in (err := capsys.readouterr().err) and said in err


@pytest.mark.parametrize(
    "flags, said",
    [
        (
            ["latent-diffusion/cin256-v2"],
            "first_stage_model is VQModelInterface; what is trained here is AutoencoderKL",
        ),
        (["tiny"], "set model.params.scale_by_std to true"),
    ],
)
def test_a_model_that_the_training_does_not_know_is_refused_before_it(flags, said, tiny, tmp_path, capsys, monkeypatch):
    build = train_shapes.instantiate_from_config

    def without_memory(config):
        with torch.device("meta"):
            return build(config)

    monkeypatch.setattr(train_shapes, "instantiate_from_config", without_memory)
    config = tiny[1] if flags == ["tiny"] else flags[0]
    with pytest.raises(SystemExit, match="2"):
        _cli.run(train_shapes.main, "train_shapes", ["--config", config, "--out", str(tmp_path / "runs")])
    assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()


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
