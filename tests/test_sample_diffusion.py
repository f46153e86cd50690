"""scripts/sample_diffusion.py: CompVis' command lines and folders, DDPM, classes, and what is written."""

from pathlib import Path

import _config
import _session
import numpy as np
import pytest
import sample_diffusion
import torch
from _script_models import of_as_many_classes_as_imagenet, of_classes, unconditional, written
from _txt2img import draw
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from ldm.checkpoint import load_model
from ldm.image import read_settings, to_pil


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return written(tmp_path_factory.mktemp("plain"), unconditional, "plain")


def of_few_timesteps(params):
    unconditional(params)
    params |= {"timesteps": 20, "linear_start": 0.05, "linear_end": 0.3}


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    return written(tmp_path_factory.mktemp("classes"), of_classes, "classes")


def drawn(run, *flags, model=(), logdir="logs"):
    """Run it, expect success; (pixels (N, H, W, 3) of the PNGs, settings of each, the .npz's array, what is said)."""
    status, out, said = run(*flags, "-l", logdir, model=model, script=sample_diffusion)
    assert status == 0, said
    (folder,) = {path.parent.parent for path in Path(logdir).rglob("*.png")}
    paths = sorted(folder.glob("img/sample_??????.png"))
    assert len(paths) == len(list(folder.glob("img/*"))) and str(folder) in out[-1]
    (array,) = folder.glob("numpy/*")
    stacked = np.load(array)["arr_0"]
    assert array.name == f"{'x'.join(map(str, stacked.shape))}-samples.npz"
    return np.stack([np.asarray(Image.open(path)) for path in paths]), list(map(read_settings, paths)), stacked, said


def apart(one, other):
    """The largest difference in grey levels."""
    return np.abs(one.astype(int) - other.astype(int)).max()


# ------------------------------------------------------------------------------------ CompVis' command line and folders


def saved(flags, ckpt, config=None, **more):
    """A model of `written` as Lightning saves it, with its config there or without."""
    ckpt.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": load_file(flags[3]), **more}, ckpt)
    if config is not None:
        config.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.merge({"data": {"batch": 4}, "lightning": {}}, OmegaConf.load(flags[1])), config)


def test_the_original_command_line_runs(run, plain, tmp_path):
    home = Path("models/ldm/celeba256")
    saved(plain, tmp_path / home / "model.ckpt", tmp_path / home / "config.yaml", global_step=7)
    flags = ["-r", "models/ldm/celeba256/model.ckpt", "-n", 5, "--batch_size", 2, "-c", 3, "-e", 1.0]
    pixels, settings, stacked, said = drawn(run, *flags)
    assert len(list(Path("logs/celeba256/samples/00000007").glob("20??-??-??-??-??-??/img/sample_00000?.png"))) == 5
    assert stacked.shape == (5, 8, 8, 3) and stacked.dtype == np.uint8 and np.array_equal(stacked, pixels) and not said
    assert [made["seed"] for made in settings] == [42, 43, 44, 45, 46]
    assert {(made["steps"], made["eta"], made["sampler"], made["model"]) for made in settings} == {
        (3, 1.0, "DDIM", "model")
    }
    assert len({each.tobytes() for each in pixels}) == 5


def test_without_a_logdir_pictures_go_to_the_models_folder(run, plain, tmp_path):
    saved(plain, tmp_path / "a/model.ckpt", tmp_path / "a/config.yaml")
    assert run("-r", "a", "-n", 1, "-c", 1, model=(), script=sample_diffusion)[0] == 0
    assert len(list(Path("a/samples/00000000").rglob("sample_000000.png"))) == 1


@pytest.mark.parametrize("resume", ["logs/run", "logs/run/checkpoints/last.ckpt"])
def test_the_folder_of_a_training_is_sampled_with_its_newest_config(run, plain, tmp_path, resume):
    saved(plain, tmp_path / "logs/run/checkpoints/last.ckpt")
    configs = tmp_path / "logs/run/configs"
    configs.mkdir()
    (configs / "2021-01-01T00-00-00-project.yaml").write_text("model: old\n")
    OmegaConf.save(OmegaConf.load(plain[1]), configs / "2022-01-01T00-00-00-project.yaml")
    (configs / "2022-01-01T00-00-00-lightning.yaml").write_text("model: none\n")
    drawn(run, "-r", resume, "-n", 1, "-c", 1, logdir="out")
    assert len(list(Path("out/run/samples").rglob("*.png"))) == 1


def test_without_a_config_the_weights_say_what_they_are(run, tmp_path):
    Path("mine").mkdir()
    Path("mine/model.ckpt").symlink_to(_config.BUNDLED_CKPT)
    pixels, settings, *_ = drawn(run, "-r", "mine", "-n", 1, "-c", 1)
    assert pixels.shape == (1, 64, 64, 3) and settings[0]["config"] == "shapes"


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path):
    made = [sample_diffusion.new_folder(tmp_path, 3) for _ in range(4)]
    assert len(set(made)) == 4 and {folder.parent for folder in made} == {tmp_path / "00000003"}


# ---------------------------------------------------------------------------------------------------- what is drawn


def test_pictures_are_the_same_in_any_batch_size(run, plain):
    one = drawn(run, "-n", 5, "--batch_size", 5, "-c", 3, model=plain, logdir="a")[0]
    other = drawn(run, "-n", 4, "--batch_size", 2, "-c", 3, "--seed", 43, model=plain, logdir="b")[0]
    assert apart(one[1:], other) <= 1 and apart(one[1], one[2]) > 1


def test_vanilla_is_the_ancestral_sampling_of_ddpm(run, tmp_path):
    """Against Ho et al. 2020, algorithm 2, by the posterior of equations 6 and 7, from the same noise."""
    few = written(tmp_path, of_few_timesteps)
    pixels, settings, *_, said = drawn(run, "-v", "-n", 2, model=few)
    assert (settings[0]["steps"], settings[0]["eta"], settings[0]["final_alpha"]) == (20, 1.0, "one") and not said
    model = load_model(_config.load_config(few[1]), few[3])
    b = model.betas.double()
    a = torch.cumprod(1 - b, 0)
    for k, picture in enumerate(pixels):
        generator = torch.Generator().manual_seed(42 + k)
        x = torch.randn(1, 4, 4, 4, generator=generator)
        for t in reversed(range(20)):
            before = a[t - 1] if t else torch.ones(())
            with torch.no_grad():
                eps = model.apply_model(x, torch.tensor([t]), None)
            x0 = (x - (1 - a[t]).sqrt() * eps) / a[t].sqrt()
            mean = before.sqrt() * b[t] / (1 - a[t]) * x0 + (1 - b[t]).sqrt() * (1 - before) / (1 - a[t]) * x
            noise = torch.randn(1, 4, 4, 4, generator=generator) if t else 0.0
            x = (mean + ((1 - before) / (1 - a[t]) * b[t]).sqrt() * noise).float()
        (due,) = to_pil(model.decode_first_stage(x))
        assert apart(picture, np.asarray(due)) <= 1
    for k, flags in enumerate((["-c", 19], ["-c", 20], ["-c", 20, "-e", 0])):
        other = drawn(run, *flags, "-n", 2, model=few, logdir=f"{k}")[0]
        assert apart(other, pixels) > 1, "all that is sampled is alike here, so this shows nothing"


def test_vanilla_says_what_has_no_effect_and_goes_with_no_other_sampler(run, plain, tmp_path):
    flags = ["-v", "-c", 5, "-n", 1, "sampler.target=ldm.sampling.PLMSSampler"]
    _, settings, _, said = drawn(run, *flags, model=written(tmp_path, of_few_timesteps))
    assert settings[0]["sampler"] == "DDIM" and len(said) == 1 and "number of steps and eta have no effect" in said[0]
    status, _, said = run("-v", "--plms", model=plain, script=sample_diffusion)
    assert status == 2 and "not allowed with" in said[0]


@pytest.mark.parametrize("flag, sampler", [("--plms", "PLMS"), ("--dpm_solver", "DPMSolver")])
def test_other_samplers_are_deterministic_by_default(run, plain, flag, sampler):
    _, settings, _, said = drawn(run, flag, "-n", 1, "-c", 4, model=plain)
    assert (settings[0]["sampler"], settings[0]["eta"]) == (sampler, 0.0) and not said


def test_eta_is_ddpms_unless_given(run, plain):
    by_default, settings, *_ = drawn(run, "-n", 1, "-c", 4, model=plain, logdir="a")
    given = [drawn(run, "-n", 1, "-c", 4, "-e", eta, model=plain, logdir=f"{eta}")[0] for eta in (0, 1)]
    assert settings[0]["eta"] == 1.0 and apart(by_default, given[1]) == 0 and apart(*given) > 1


@pytest.mark.parametrize("flags", [["--scale", 3], ["--scale", 3, "--negative_prompt", 7]])
def test_a_class_is_drawn_as_txt2img_draws_it(run, classes, flags):
    flags = [*flags, "--seed", 5, "--ddim_steps", 3, "--ddim_eta", 0]
    pixels, settings, *_ = drawn(run, "--classes", 3, 9, "-n", 3, *flags, model=classes)
    assert [made["prompt"] for made in settings] == ["3", "9", "3"]
    run_classes = lambda *given: run(*given, model=classes)  # noqa: E731
    one = ["--prompt", "9", "--n_samples", 1, "--n_iter", 1, "--seed", 6, "--ddim_steps", 3, "--ddim_eta", 0]
    due, told = draw(run_classes, *flags, *one)[0]
    assert apart(pixels[1], due) <= 1 and apart(pixels[0], pixels[1]) > 1 and settings[1] == told


def test_all_classes_are_drawn_in_turn_but_for_the_one_that_stands_for_none(run, classes, tmp_path):
    change = "model.params.cond_stage_config.params.n_classes=1001"
    _, settings, *_ = drawn(run, "-n", 4, "-c", 1, change, "--batch_size", 3, model=classes)
    assert [made["prompt"] for made in settings] == ["0", "1", "2", "3"] and settings[0]["scale"] == 2.0  # the config's
    opt = sample_diffusion.parse(["-n", "2002", *classes, "--scale", "1"])
    session = _session.Session(opt)
    assert sample_diffusion.told(session, opt) == [str(k % 1000) for k in range(2002)]
    all = written(tmp_path, of_as_many_classes_as_imagenet)
    opt = sample_diffusion.parse(["-n", "1001", *all, "--scale", "1"])
    assert sample_diffusion.told(_session.Session(opt), opt) == [*map(str, range(1000)), "0"]


def test_a_model_of_texts_draws_with_the_empty_one(run, tiny):
    pixels, settings, *_, said = drawn(run, "-n", 2, "-c", 3, "-e", 0, model=tiny)
    due = draw(run, "--prompt", "", "--scale", 1, "--n_samples", 2, "--n_iter", 1, "--ddim_steps", 3)
    assert apart(pixels, np.stack([picture for picture, _ in due])) <= 1 and not said
    assert [(made["prompt"], made["scale"]) for made in settings] == [("", 1.0)] * 2
    *_, said = drawn(run, "-n", 1, "-c", 1, "--scale", 3, model=tiny, logdir="b")
    assert len(said) == 1 and "--scale and --negative_prompt have no effect" in said[0]


def test_the_bundled_model_draws_without_a_flag_for_it(run):
    pixels, settings, *_ = drawn(run, "-n", 1, "-c", 2)
    assert pixels.shape == (1, 64, 64, 3) and len(list(Path("logs/shapes/samples/00000000").iterdir())) == 1


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_an_interruption_keeps_the_pictures_and_no_part_of_the_array(run, plain, monkeypatch):
    sample, calls = _session.sample, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(_session, "sample", interrupted)
    flags = ["-n", 6, "--batch_size", 2, "-c", 1, "-l", "logs"]
    status, _, said = run(*flags, model=plain, script=sample_diffusion)
    assert status == 130 and "4 pictures finished" in said[0]
    names = sorted(path.name for path in Path("logs").rglob("*") if path.is_file())
    assert names == [f"sample_00000{k}.png" for k in range(4)]


def test_the_array_has_its_name_when_it_is_whole(run, plain, monkeypatch):
    sample, seen = _session.sample, []

    def look(*args):
        seen.append([path.name for path in Path("logs").rglob("*.npz*")])
        return sample(*args)

    monkeypatch.setattr(_session, "sample", look)
    drawn(run, "-n", 2, "--batch_size", 1, "-c", 1, model=plain)
    assert seen == [["2x8x8x3-samples.npz.partial"]] * 2


@pytest.mark.parametrize(
    "flags, said",
    [
        (["-r", "nowhere"], "--resume 'nowhere' does not exist; give a checkpoint, or the folder of a training"),
        (["-r", "empty"], "--resume 'empty' is a folder without model.ckpt and checkpoints/last.ckpt"),
        (["-r", ""], "-r/--resume: the path is empty"),
        (["-r", "empty", "--ckpt", "x"], "--resume empty and --ckpt x both say which weights; leave one out"),
        (["-r", "page.ckpt"], "'page.ckpt' is not a checkpoint"),
        (["-n", 0], "-n/--n_samples: '0': give an integer from 1"),
        (["--batch_size", 0], "--batch_size: '0': give an integer from 1"),
        (["-c", 0], "-c/--custom_steps: '0': give an integer of at least 1"),
        (["-e", -1], "-e/--eta: '-1': give a number of at least 0"),
        (["-l", ""], "-l/--logdir: the path is empty"),
        (["--classes", "dog"], "--classes: 'dog': give an integer"),
        (["--classes", 3], "--classes 3: this model is told text, not classes; leave it out"),
        (["-l", "page.ckpt"], "page.ckpt"),
        (["--H", 10], "--H 10: this model takes multiples of 16"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(flags, said, run, no_model):
    Path("empty").mkdir()
    Path("page.ckpt").write_text("<html>")
    status, out, err = run(*flags, model=(), script=sample_diffusion)
    assert status == 2 and not out and len(err) == 1 and said in err[0].replace(str(Path.cwd()) + "/", ""), err


@pytest.mark.parametrize(
    "change, flags, said",
    [
        (of_classes, ["--classes", 1001], "class 1001 is not there; the model knows 0 to 1000"),
        (of_classes, ["--negative_prompt", "dog"], "not 'dog'"),
        (of_as_many_classes_as_imagenet, ["--scale", 3], "none of this model's 1000 classes is known to stand for no"),
        (unconditional, ["--classes", 3], "--classes 3: this model is told nothing, not classes"),
    ],
)
def test_so_is_what_is_no_class(change, flags, said, run, no_model, tmp_path):
    status, out, err = run(*flags, model=written(tmp_path, change), script=sample_diffusion)
    assert status == 2 and not out and len(err) == 1 and said in err[0] and not Path("outputs").exists()


def test_a_deterministic_sampler_of_the_config_is_not_given_ddpms_eta(run, plain):
    _, settings, _, said = drawn(run, "-n", 1, "-c", 4, "sampler.target=ldm.sampling.PLMSSampler", model=plain)
    assert (settings[0]["sampler"], settings[0]["eta"]) == ("PLMS", 0.0) and not said
