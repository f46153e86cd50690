"""scripts/txt2img.py as a user meets it, on a tiny model with random weights."""

import subprocess
import sys
from pathlib import Path

import _cli
import _config
import numpy as np
import pytest
import torch
import txt2img
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from ldm.image import read_settings

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "txt2img.py"
WORDS = "a red blue green circle square above".split()
CONFIG = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 100, "image_size": 4, "channels": 4,
            "conditioning_key": "crossattn", "use_ema": False,
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    "image_size": 4, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1,
                    "attention_resolutions": [1], "channel_mult": [1, 2], "num_heads": 2, "legacy": False,
                    "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 16,
                },
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": {
                    "embed_dim": 4,
                    "ddconfig": {
                        "double_z": True, "z_channels": 4, "resolution": 8, "in_channels": 3, "out_ch": 3, "ch": 32,
                        "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
                    },
                },
            },
            "cond_stage_config": {
                "target": "ldm.modules.encoders.caption.CaptionEncoder",
                "params": {"vocabulary": WORDS, "width": 16, "layers": 1, "heads": 2, "max_length": 8},
            },
        },
    },
    "sampler": {"target": "ldm.sampling.DDIMSampler", "params": {"S": 4, "unconditional_guidance_scale": 2.0}},
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The flags that choose a tiny model, written to files as a user has them."""
    from ldm.util import instantiate_from_config

    folder = tmp_path_factory.mktemp("tiny")
    OmegaConf.save(OmegaConf.create(CONFIG), folder / "tiny.yaml")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = instantiate_from_config(CONFIG["model"]).state_dict()
        # Where the original starts at zero, noise: else neither the caption nor the noise level would change anything.
        weights = {k: torch.randn_like(v) * 0.1 if v.ndim > 1 and not v.any() else v for k, v in weights.items()}
    save_file(weights, folder / "tiny.safetensors")
    return "--config", str(folder / "tiny.yaml"), "--ckpt", str(folder / "tiny.safetensors"), "--device", "cpu"


@pytest.fixture
def run(tiny, tmp_path, capsys, monkeypatch):
    """Run the script's main in a folder of its own; returns (exit status, stdout's and stderr's lines)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, model=tiny):
        status = 0
        try:
            _cli.run(txt2img.main, "txt2img", [*model, *map(str, flags)])
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, said.out.splitlines(), [line for line in said.err.splitlines() if line.startswith("txt2img")]

    return run


def draw(run, *flags, out="out"):
    """Run it, expect success, and return (pixels, settings) of each picture in order."""
    status, _, said = run("--prompt", "a red circle", "--skip_grid", "--outdir", out, *flags)
    assert status == 0, said
    paths = sorted(Path(out, "samples").glob("*.png"))
    return [(np.asarray(Image.open(path)).astype(int), read_settings(path)) for path in paths]


def difference(one, other):
    """The largest, in grey levels, between two (pixels, settings)."""
    return abs(one[0] - other[0]).max()


# ------------------------------------------------------------------------------------------------------ what is drawn


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


def test_autocast_on_a_cpu_computes_in_bfloat16_and_comes_close(run):
    full, half = (
        draw(run, "--n_samples", 1, "--n_iter", 1, "--precision", p, out=p)[0] for p in ("full", "autocast")
    )
    assert 0 < difference(full, half) < 40 and half[1]["precision"] == "autocast"


# ----------------------------------------------------------------------------------- the config, overrides and flags


def test_a_flag_goes_before_an_override_and_an_override_before_the_config(run):
    one = ["--n_samples", 1, "--n_iter", 1]
    by_config, by_override, by_flag, by_both = (
        draw(run, *one, *flags, out=f"{k}")[0]
        for k, flags in enumerate(
            ([], ["sampler.params.S=2"], ["--ddim_steps", 2], ["sampler.params.S=7", "--ddim_steps", 2])
        )
    )
    assert [x[1]["steps"] for x in (by_config, by_override, by_flag, by_both)] == [4, 2, 2, 2]
    assert difference(by_override, by_flag) == difference(by_both, by_flag) == 0 < difference(by_config, by_flag)


def test_any_option_of_the_sampler_can_be_set_in_the_config(run):
    one = ["--n_samples", 1, "--n_iter", 1]
    plain = draw(run, *one, out="a")[0]
    other = draw(run, "sampler.params.ddim_discretize=quad", *one, "sampler.params.eta=1", out="b")[0]
    assert difference(plain, other) > 0 and other[1]["ddim_discretize"] == "quad" and other[1]["eta"] == 1


def test_a_config_without_a_sampler_gets_compvis_defaults():
    config = OmegaConf.create({"sampler": {"params": {}}})
    from ldm.sampling import DDIMSampler

    _, options = _config.sampler_options(config, DDIMSampler, txt2img.parse([]))
    assert options == {"S": 50, "eta": 0.0, "unconditional_guidance_scale": 7.5}


def test_the_negative_prompt_takes_part_only_with_guidance(run):
    one = ["--n_samples", 1, "--n_iter", 1]
    negative = [*one, "--negative_prompt", "a blue square above a green square"]
    assert difference(draw(run, *one, out="a")[0], draw(run, *negative, out="b")[0]) > 0
    status, _, said = run(*negative, "--scale", 1, "--outdir", "c")
    assert status == 0 and any("warning: --negative_prompt has no effect with --scale 1" in line for line in said)


def test_flags_of_compvis_mean_what_they_meant():
    opt = txt2img.parse("--prompt x --outdir o --skip_grid --skip_save --ddim_steps 20 --fixed_code --ddim_eta 0.5 "
                        "--n_iter 3 --H 64 --W 64 --C 4 --f 8 --n_samples 5 --n_rows 6 --scale 3 --from-file p "
                        "--config c --ckpt k --seed 1 --precision full".split())  # fmt: skip
    assert (opt.ddim_steps, opt.ddim_eta, opt.scale, opt.n_iter, opt.n_samples) == (20, 0.5, 3.0, 3, 5)
    opt = txt2img.parse([])
    assert (opt.n_iter, opt.n_samples, opt.seed, opt.n_rows) == (2, 3, 42, 0)
    assert opt.outdir == "outputs/txt2img-samples"


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--n_samples", 0], "--n_samples: '0': give an integer of at least 1"),
        (["--ddim_steps", 0], "--ddim_steps: '0'"),
        (["--scale", "nan"], "--scale: 'nan': give a number"),
        (["--seed", -1], "--seed: '-1'"),
        (["--precision", "half"], "choose from"),
        (["--wings", 2], "--wings"),
        (["--from-file", "empty.txt"], "--from-file empty.txt holds no prompts; write one a line"),
        (["--from-file", "nowhere.txt"], "nowhere.txt"),
        (["--from-file", "binary.txt"], "binary.txt: byte 0 is not UTF-8"),
        (["--H", 10], "--H 10: this model takes multiples of 4, such as 12"),
        (["--W", 1], "--W 1: this model takes multiples of 4, such as 4"),
        (["--C", 3], "--C 3: this model has 4 latent channels"),
        (["--f", 8], "--f 8: this model has a downsampling factor of 2"),
        (["--device", "gpu"], "--device 'gpu' is unknown; choose auto, cpu, cuda"),
        (["--outdir", "empty.txt"], "empty.txt"),
        (["--config", "nowhere.yaml"], "config 'nowhere.yaml' does not exist"),
        (["--config", "empty.txt"], "config 'empty.txt' has no 'model' section"),
        (["--config", "broken.yaml"], "config 'broken.yaml' is not YAML"),
        (["sampler"], "'sampler': an override is KEY=VALUE"),
        (["modle.params.channels=3"], "the config has no 'modle'; did you mean 'model'?"),
        (["model.parms.channels=3"], "model has no 'parms'; did you mean 'params'?"),
        (["model.target.x=3"], "'model.target' is a value"),
        (["model.params.channels=[1"], "override 'model.params.channels=[1'"),
        (["sampler.params.ddim_steps=3"], "it is called 'S' there"),
        (["sampler.params.etta=3"], "did you mean 'eta'?"),
        (["sampler.params.eta=much"], "sampler.params.eta is 'much'; give a number"),
        (["sampler.params.S=2.5"], "sampler.params.S is 2.5; give an integer"),
        (["sampler.target=os.system"], "os.system"),
        (["sampler.target=ldm.util.exists"], "has no `sample`"),
        (["sampler=null"], "sampler"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(flags, said, run, monkeypatch):
    Path("empty.txt").write_text(" \n\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("broken.yaml").write_text("model: [1\nx: }")
    monkeypatch.setattr("ldm.checkpoint.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    status, out, err = run(*flags)
    assert status == 2 and not out
    assert len(err) == 1 and err[0].startswith("txt2img: error: ") and said in err[0]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--ckpt", "nowhere.ckpt"], "checkpoint 'nowhere.ckpt' does not exist"),
        (["--ckpt", "text.ckpt"], "'text.ckpt' is not a checkpoint"),
        (["model.params.unet_config.params.model_channels=64"], "does not fit the config's model"),
        (["model.params.wings=2"], "wings"),
        (["model.target=subprocess.run"], "subprocess.run"),
        (["model.target=ldm.nowhere.Model"], "ldm.nowhere"),
        (["--ddim_steps", 101], "101"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line_too(flags, said, run):
    Path("text.ckpt").write_text("<html>")
    status, _, err = run(*flags)
    assert status == 2 and len(err) == 1 and err[0].startswith("txt2img: error: ") and said in err[0]


def test_a_config_needs_its_own_weights(run, tiny):
    status, _, err = run(model=tiny[:2])
    assert status == 2 and "needs its weights: give --ckpt" in err[0]


def test_nan_from_the_model_is_an_error_and_no_picture(run, monkeypatch):
    from ldm.models.diffusion.ddpm import LatentDiffusion

    monkeypatch.setattr(LatentDiffusion, "decode_first_stage", lambda self, z: torch.full((len(z), 3, 8, 8), torch.nan))
    status, _, err = run("--outdir", "out")
    assert status == 2 and "NaN" in err[0] and not list(Path("out").rglob("*.png"))


def test_a_mistake_of_ours_is_not_hidden(run, monkeypatch):
    monkeypatch.setattr(txt2img, "plan", lambda *_: 1 / "0")
    with pytest.raises(TypeError):
        run()


def test_an_interruption_keeps_what_was_finished(run, monkeypatch):
    sample, calls = txt2img.sample, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(txt2img, "sample", interrupted)
    status, out, err = run("--n_samples", 2, "--outdir", "out")
    assert status == 130 and not out
    assert err == ["txt2img: interrupted: 2 pictures finished; out/samples has what is saved"]
    assert [path.name for path in sorted(Path("out/samples").iterdir())] == ["00000.png", "00001.png"]


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
    prompts = _cli.read_prompts(ROOT / "configs" / "demo_prompts.txt")
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
