"""What a user can do wrong with scripts/txt2img.py is one line and exit status 2."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import _session
import pytest
import torch
import txt2img


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--n_samples", 0], "--n_samples: '0': give an integer from 1 to 100000"),
        (["--n_samples", 10**9], "--n_samples: '1000000000': give an integer from 1 to 100000"),
        (["--n_iter", 0], "--n_iter: '0': give an integer of at least 1"),
        (["--ckpt", ""], "--ckpt: the path is empty"),
        (["--config", ""], "--config: the path is empty"),
        (["--from-file", ""], "--from-file: the path is empty"),
        (["--from-file", "empty.txt", "--prompt", ""], "--prompt: not allowed with argument --from-file"),
        (["--prompt", "a \udcff"], "--prompt: 'a \\udcff' is not text"),
        (["--prompt", "a" * 10_001], "--prompt: it has 10001 characters; at most 10000 are read"),
        (["--H", 10**6], "--H: '1000000': give an integer from 1 to 16384"),
        (["--negative_prompt", "\udcff"], "--negative_prompt: '\\udcff' is not text"),
        (["precision=foo"], "precision is 'foo'; choose one of auto, full, bf16, fp16, autocast"),
        (["precision=null"], "precision is None; choose one of"),
        (["precision=[bf16]"], "precision is ['bf16']; choose one of"),
        (["--config", "folder"], "config 'folder' is a folder; a diffusers folder goes to --ckpt"),
        (["--config", "latin.yaml"], "config 'latin.yaml' is not YAML text"),
        (["--config", "binary.txt"], "config 'binary.txt' is not YAML text"),
        (["--config", "zeros.yaml"], "config 'zeros.yaml' is not YAML text"),
        (["--config", "deep.yaml"], "config 'deep.yaml' is nested too deeply"),
        ([f"model.params.x={'[' * 3000}"], "override 'model.params.x="),
        (["--config", "stable-diffusion/v9"], "config 'stable-diffusion/v9' does not exist; give the path"),
        (["model.params.conditioning_key=sideways"], "model.params.conditioning_key is 'sideways'; choose one of"),
        (["model.params.conditioning_key=adm"], "told a vector"),
        (["model.params.cond_stage_config=__is_first_stage__"], "draws from a picture or a map"),
        (["model.params.cond_stage_config.target=ldm.modules.encoders.modules.SpatialRescaler"], "'SpatialRescaler'"),
        (
            [
                "model.params.cond_stage_config.target=ldm.modules.encoders.modules.BERTEmbedder",
                "model.params.cond_stage_config.params.use_tokenizer=false",
            ],
            "told numbers, not words (BERTEmbedder",
        ),
        (["--ddim_steps", 0], "--ddim_steps: '0'"),
        (["--scale", "nan"], "--scale: 'nan': give a number"),
        (["--seed", -1], "--seed: '-1'"),
        (["--precision", "half"], "choose from"),
        (["--wings", 2], "unrecognized arguments: --wings (--help"),
        (["--promt=a", "b"], "unrecognized arguments: --promt=a; did you mean --prompt? (--help"),
        (["--from-file", "long.txt"], "long.txt: a line has 10001 characters; at most 10000 are read"),
        (["--from-file", "empty.txt"], "--from-file empty.txt holds no prompts; write one a line"),
        (["--from-file", "nowhere.txt"], "error: --from-file nowhere.txt: No such file or directory"),
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
        (["sampler=null"], "sampler is None; give it a target and params"),
        (["sampler.params.schedule=cosine"], "sampler.params has 'schedule', which DDIMSampler does not know"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(flags, said, run, no_model):
    Path("empty.txt").write_text(" \n\n")
    Path("long.txt").write_text("a cat\n" + "x" * 10_001)
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("broken.yaml").write_text("model: [1\nx: }")
    Path("latin.yaml").write_bytes("model: é".encode("latin-1"))
    Path("zeros.yaml").write_bytes(b"model: \0")
    Path("deep.yaml").write_text("model: " + "[" * 3000 + "]" * 3000)
    Path("folder").mkdir()
    status, out, err = run(*flags)
    assert status == 2 and not out
    assert len(err) == 1 and err[0].startswith("txt2img: error: ") and said in err[0]


@pytest.mark.parametrize(
    "override, remedy",
    [
        *((f"sampler.params.{name}=abc", "give a number") for name in (
            "guidance_rescale", "temperature", "noise_dropout", "dynamic_threshold")),
        ("sampler.params.temperature=true", "give a number"),
        ("sampler.params.log_every_t=1.5", "give an integer"),
        ("sampler.params.quantize_x0=abc", "give true or false"),
        ("sampler.params.clip_x0=abc", "give true or false, or a number, or null"),
        ("sampler.params.timesteps=abc", "give [an integer, …]"),
        ("sampler.params.timesteps=[1,2,a,3]", "give [an integer, …]"),
        ("sampler.params.guidance_interval=5", "give [a number, a number], or null"),
        ("sampler.params.guidance_interval=[5]", "give [a number, a number], or null"),
        ("sampler.params.ddim_discretize=[1]", "give a name"),
        ("sampler.params=5", "give a mapping, as in sampler.params.NAME=VALUE"),
        ("sampler.target=5", "give the dotted path of a class"),
        ("sampler.target=", "give the dotted path of a class"),
        ("model.target=5", "give the dotted path of a class"),
        ("model.params.unet_config.target=5", "give the dotted path of a class"),
        ("model.params=5", "give a mapping"),
        ("model=5", "give it a target and params"),
        ("model.params.channels=abc", "give an integer"),
        ("model.params.image_size=abc", "give an integer, or [an integer, an integer]"),
        ("model.params.image_size=8.5", "give an integer, or [an integer, an integer]"),
        ("model.params.image_size=[8]", "give an integer, or [an integer, an integer]"),
        ("model.params.first_stage_config.params.ddconfig.ch_mult=2", "give [an integer, …]"),
        ("model.params.unet_config.params.channel_mult=3", "give [an integer, …]"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named_with_the_right_one(override, remedy, run, no_model):
    status, _, err = run(override)
    assert status == 2 and len(err) == 1
    assert err[0].startswith(f"txt2img: error: {override.partition('=')[0]} is ") and remedy in err[0]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--ckpt", "nowhere.ckpt"], "checkpoint 'nowhere.ckpt' does not exist"),
        (["--ckpt", "text.ckpt"], "'text.ckpt' is not a checkpoint"),
        (["model.params.unet_config.params.model_channels=64"], "does not fit the config's model"),
        (["model.params.wings=2"], "LatentDiffusion has no parameter wings"),
        (["model.params.unet_config.params.wings=2"], "UNetModel.__init__() got an unexpected keyword argument 'wing"),
        (["model.params.cond_stage_config.target=torch.nn.Linear"], "Linear.__init__()"),
        (["sampler.params.quantize_x0=true"], "quantize_x0"),
        (["sampler.params.noise_device=cud"], "noise_device"),
        (["sampler.params.noise_device=5"], "noise_device"),
        (["model.target=subprocess.run"], "subprocess.run"),
        (["model.target=ldm.nowhere.Model"], "ldm.nowhere"),
        (["sampler.params.S=101"], "sampler.params.S = 101: choose a number of steps from 1 to 100"),
        (["--ddim_steps", 101], "--ddim_steps 101: choose a number of steps from 1 to 100, the timesteps that the"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line_too(flags, said, run):
    Path("text.ckpt").write_text("<html>")
    status, _, err = run(*flags)
    assert status == 2 and len(err) == 1 and err[0].startswith("txt2img: error: ") and said in err[0]


def test_a_missing_package_is_named_with_the_command_that_installs_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    status, _, err = run()
    assert status == 2 and len(err) == 1
    assert "PIL" in err[0] and "pip install '.[scripts]'" in err[0]


def test_so_is_python_without_any_package(tmp_path):
    bare = [sys.executable, "-S", txt2img.__file__]  # -S: no site-packages
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install '.[scripts]'" in done.stderr


def test_a_config_needs_its_own_weights(run, tiny):
    status, _, err = run(model=tiny[:2])
    assert status == 2 and "needs its weights: give --ckpt" in err[0]


def test_latents_that_overflow_are_an_error_with_the_flag_that_helps(run, monkeypatch):
    from ldm.models.diffusion.ddpm import LatentDiffusion

    apply = LatentDiffusion.apply_model
    monkeypatch.setattr(LatentDiffusion, "apply_model", lambda self, *given: apply(self, *given) * torch.nan)
    remedies = {
        "full": "in float32 (the latents are not finite (NaN or Inf) after step 1 of 4); check the checkpoint and the "
        "config (scale, scale_factor)",
        "fp16": "float16 (the latents are not finite (NaN or Inf) after step 1 of 4); compute with --precision full",
        "bf16": "bfloat16 (the latents are not finite (NaN or Inf) after step 1 of 4); compute with --precision full",
    }
    for precision, remedy in remedies.items():
        status, _, err = run("--outdir", "out", "--precision", precision)
        assert status == 2 and remedy in err[-1] and not list(Path("out").rglob("*.png"))


def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_read(run, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("ldm.checkpoint.load_checkpoint", lambda *_: pytest.fail("the weights were opened"))
    status, _, err = run("--outdir", "out")
    assert status == 2 and "--outdir: no file can be made in 'out/samples' (Read-only file system)" in err[0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_so_is_one_without_permission(run):
    Path("out/samples").mkdir(parents=True, mode=0o555)
    status, _, err = run("--outdir", "out")
    assert status == 2 and "no file can be made in 'out/samples' (Permission denied)" in err[0]


def test_nan_from_the_model_is_an_error_and_no_picture(run, monkeypatch):
    from ldm.models.diffusion.ddpm import LatentDiffusion

    monkeypatch.setattr(LatentDiffusion, "decode_first_stage", lambda self, z: torch.full((len(z), 3, 8, 8), torch.nan))
    status, _, err = run("--outdir", "out")
    assert status == 2 and "autoencoder overflowed in float32 (NaN" in err[0] and "--precision" not in err[0]
    assert not list(Path("out").rglob("*.png"))


def test_a_mistake_of_ours_is_not_hidden(run, monkeypatch):
    monkeypatch.setattr(_session, "plan", lambda *_: 1 / "0")
    with pytest.raises(TypeError):
        run()


def test_an_interruption_keeps_what_was_finished(run, monkeypatch):
    sample, calls = _session.sample, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(_session, "sample", interrupted)
    status, out, err = run("--n_samples", 2, "--outdir", "out")
    assert status == 130 and not out
    assert err == ["txt2img: interrupted: 2 pictures finished; out/samples has what is saved"]
    assert [path.name for path in sorted(Path("out/samples").iterdir())] == ["00000.png", "00001.png"]
