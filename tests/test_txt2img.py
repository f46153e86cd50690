"""scripts/txt2img.py as a user meets it: what it draws, from where it runs, and the bundled model."""

import subprocess
import sys
from pathlib import Path

import _cli
import _config
import _model
import _session
import numpy as np
import pytest
import torch
import txt2img
from _txt2img import difference, draw
from PIL import Image

SCRIPT = Path(txt2img.__file__)
DEMO = _config.ROOT / "configs" / "demo_prompts.txt"


def test_a_prompt_gets_n_samples_pictures_in_each_iteration_and_a_grid(run):
    status, out, _ = run("--n_samples", 2, "--n_iter", 2, "--outdir", "out")
    assert status == 0
    assert [path.name for path in sorted(Path("out/samples").iterdir())] == [f"0000{k}.png" for k in range(4)]
    assert Image.open("out/grid-0000.png").size == (2 * 8 + 3 * 4, 2 * 8 + 3 * 4)
    assert out[-1] == "4 pictures: in out/samples, side by side in out/grid-0000.png"


def test_pictures_count_on_from_what_is_there_and_nothing_is_written_over(run):
    Path("out/samples").mkdir(parents=True)
    Path("out/samples/00006.png").write_bytes(b"mine")
    Path("out/samples/notes.txt").write_bytes(b"mine too")
    Path("out/grid-0002.png").write_bytes(b"mine")
    assert run("--n_samples", 2, "--n_iter", 1, "--outdir", "out")[0] == 0
    assert sorted(path.name for path in Path("out/samples").iterdir()) == [
        "00006.png", "00007.png", "00008.png", "notes.txt"]  # fmt: skip
    assert Path("out/grid-0003.png").exists()
    assert Path("out/samples/00006.png").read_bytes() == Path("out/grid-0002.png").read_bytes() == b"mine"


def test_a_picture_is_the_same_alone_in_a_batch_and_in_another_batch_size(run):
    together = draw(run, "--seed", 10, "--n_samples", 3, "--n_iter", 2, "--ddim_eta", 1, out="together")
    alone = draw(run, "--seed", 14, "--n_samples", 1, "--n_iter", 1, "--ddim_eta", 1, out="alone")
    assert difference(together[4], alone[0]) <= 1
    assert difference(together[3], together[4]) > 1, "the tiny model ignores its noise, so this shows nothing"


def test_a_pictures_settings_make_it_again(run):
    made = draw(run, "--seed", 5, "--n_samples", 2, "--ddim_eta", 0.3, "--negative_prompt", "a blue square", out="a")[3]
    seen = made[1]
    again = draw(
        run, "--prompt", seen["prompt"], "--negative_prompt", seen["negative_prompt"], "--seed", seen["seed"],
        "--ddim_steps", seen["steps"], "--scale", seen["scale"], "--ddim_eta", seen["eta"],
        "--H", seen["height"], "--W", seen["width"], "--n_samples", 1, "--n_iter", 1, out="b",
    )  # fmt: skip
    assert seen["seed"] == 8 and seen["model"] == "tiny" and seen["sampler"] == "DDIM"
    assert difference(made, again[0]) <= 1 and seen == again[0][1]


def test_a_pictures_settings_tell_the_model_that_drew_it(run, tiny, tmp_path, monkeypatch):
    one = ["--n_samples", 1, "--n_iter", 1]
    plain = draw(run, *one, out="a")[0][1]
    assert plain["config"] == plain["model"] == "tiny" and "ema" not in plain and "overrides" not in plain
    change = "model.params.scale_factor=2.0"
    changed = draw(run, *one, change, "sampler.params.eta=0.1", out="b")[0][1]
    assert changed["overrides"] == [change] and changed["eta"] == 0.1
    (tmp_path / "sd-v1.5").mkdir()
    opt = txt2img.parse(["--ema", "--ckpt", "sd-v1.5"])
    assert _model._told(opt, "sd-v1.5", "x") == {"model": "sd-v1.5", "config": "x", "ema": True}
    monkeypatch.chdir("sd-v1.5")
    assert _model._told(opt, ".", "x")["model"] == "sd-v1.5"
    (tmp_path / "name.ckpt").symlink_to(tiny[3])
    assert _model._told(opt, str(tmp_path / "name.ckpt"), "x")["model"] == "name"


def test_the_config_that_a_file_shows_itself_to_be_is_told(run, tmp_path):
    (tmp_path / "mine.ckpt").symlink_to(_config.BUNDLED_CKPT)
    model = ["--ckpt", str(tmp_path / "mine.ckpt"), "--device", "cpu"]
    flags = ["--n_samples", 1, "--n_iter", 1, "--ddim_steps", 1]
    told = draw(lambda *given: run(*given, model=model), *flags)[0][1]
    assert (told["model"], told["config"]) == ("mine", "shapes")


def test_an_empty_prompt_is_drawn_as_one(run):
    one = ["--n_samples", 1, "--n_iter", 1]
    empty, default = (
        draw(run, *one, "--prompt", prompt, out=f"{k}")[0] for k, prompt in enumerate(["", txt2img.PROMPT])
    )
    assert empty[1]["prompt"] == "" and difference(empty, default) > 0


def test_iterations_are_planned_as_they_come():
    opt = txt2img.parse(["--n_iter", str(10**12), "--n_samples", "2"])
    parts = _session.batches(_session.plan(["a", "b", "c"], opt), 2)
    assert [next(parts), next(parts)] == [[("a", 42), ("b", 43)], [("c", 44), ("a", 45)]]


def test_each_line_of_a_file_is_drawn_once_and_the_last_batch_may_be_smaller(run):
    prompts = ["a red circle", "a blue circle", "a green square", "a red square", "a blue square"]
    Path("prompts.txt").write_text("\n\n".join(prompts) + "\n   \n")
    drawn = draw(run, "--from-file", "prompts.txt", "--n_samples", 2, "--n_iter", 2)
    assert [settings["prompt"] for _, settings in drawn] == prompts * 2
    assert [settings["seed"] for _, settings in drawn] == list(range(42, 52))


def test_a_grid_of_different_prompts_has_captions_below(run):
    Path("prompts.txt").write_text("a red circle\na blue circle\n")
    assert run("--from-file", "prompts.txt", "--n_samples", 2, "--n_iter", 1, "--outdir", "out")[0] == 0
    grid = np.asarray(Image.open("out/grid-0000.png").convert("L"))
    assert grid.shape[0] > 192 and (grid[200:] < 100).any(), "no text below the pictures"


def test_fixed_code_starts_every_batch_from_the_same_noise(run):
    fixed = draw(run, "--fixed_code", "--n_samples", 2, "--n_iter", 2, out="fixed")
    assert difference(fixed[0], fixed[2]) <= 1 and difference(fixed[1], fixed[3]) <= 1
    assert difference(fixed[0], fixed[1]) > 1
    free = draw(run, "--n_samples", 2, "--n_iter", 2, out="free")
    assert difference(free[0], free[2]) > 1


def test_n_rows_is_the_number_of_pictures_in_a_row_of_the_grid(run):
    run("--n_samples", 4, "--n_iter", 1, "--n_rows", 2, "--outdir", "out")
    assert Image.open("out/grid-0000.png").size == (2 * 8 + 3 * 4, 2 * 8 + 3 * 4)


def test_what_is_skipped_is_not_written(run):
    out = run("--skip_save", "--skip_grid", "--n_samples", 1, "--n_iter", 1, "--outdir", "out")[1]
    assert not list(Path("out").rglob("*.png")) and out[-1] == "1 picture: none was saved"


def test_the_size_is_the_models_unless_given(run):
    assert draw(run, "--n_samples", 1, "--n_iter", 1, out="own")[0][0].shape == (8, 8, 3)
    wide = draw(run, "--n_samples", 1, "--n_iter", 1, "--H", 12, "--W", 16, "--C", 4, "--f", 2, out="wide")
    assert wide[0][0].shape == (12, 16, 3)


@pytest.mark.parametrize("name, dtype", [("bf16", "bfloat16"), ("fp16", "float16")])
def test_half_precision_comes_close_and_is_told_in_the_settings(run, name, dtype):
    full, half = (draw(run, "--n_samples", 1, "--n_iter", 1, "--precision", p, out=p)[0] for p in ("full", name))
    assert 0 < difference(full, half) < 40 and half[1]["precision"] == dtype and full[1]["precision"] == "float32"


# ----------------------------------------------------------------------------------------------- as a program, bundled


def program(*argv, cwd):
    return subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_it_runs_from_any_folder_of_a_plain_checkout(tiny, tmp_path):
    done = program(SCRIPT, *tiny, "--n_samples", 1, "--n_iter", 1, "--ddim_steps", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where = "1 picture: in outputs/txt2img-samples/samples, side by side in outputs/txt2img-samples/grid-0000.png"
    assert done.stdout.splitlines()[-1] == where
    assert (tmp_path / "outputs/txt2img-samples/samples/00000.png").exists()


def test_as_a_program_an_error_is_one_line_and_status_2(tmp_path):
    done = program(SCRIPT, "--from-file", "nowhere.txt", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("txt2img: error: ")


def test_help_answers_without_loading_torch(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import txt2img, atexit; "
    code += "atexit.register(lambda: print('LOADED', 'torch' in sys.modules)); txt2img.main(['--help'])"
    done = program("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and "--ddim_steps" in done.stdout and "LOADED False" in done.stdout


def test_the_bundled_config_draws_64_pixels_a_side_and_knows_every_word_of_the_demo():
    config = _config.load_config(None)
    assert _config.latent_shape(config, None, None, None, None) == _config.latent_shape(config, 64, 64, None, None)
    known = set(config.model.params.cond_stage_config.params.vocabulary)
    prompts = _cli.read_prompts(DEMO)
    assert len(prompts) >= 16 and {word.strip(",") for prompt in prompts for word in prompt.split()} <= known
    assert set(txt2img.PROMPT.split()) <= known


@pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout")
def test_without_a_config_the_bundled_model_draws(run):
    status, _, said = run("--ddim_steps", 2, "--n_samples", 1, "--n_iter", 1, "--outdir", "out", model=())
    assert status == 0, said
    assert Image.open("out/samples/00000.png").size == (64, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_what_the_cpu_draws(run):
    one = ["--n_samples", 1, "--n_iter", 1]
    cpu, full, half = (
        draw(run, *one, "--device", device, *flags, out=f"{k}")[0]
        for k, (device, *flags) in enumerate((["cpu"], ["cuda", "--precision", "full"], ["cuda"]))
    )
    assert difference(cpu, full) <= 2 and difference(cpu, half) < 20
