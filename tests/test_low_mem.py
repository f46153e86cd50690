"""--low_mem: the same pictures, asked for and decoded in pieces, with the parts of the model away when not at work."""

from pathlib import Path

import _low_mem
import _machine
import img2img
import inpaint
import measure_samplers
import numpy as np
import pytest
import torch
from _script_models import of_filling_by_concat, unconditional, written
from _txt2img import difference, draw
from PIL import Image
from torch import nn

from ldm.checkpoint import load_model

FLAG = ((), ("--low_mem",))


@pytest.fixture
def kept(monkeypatch):
    """The models that a script loads."""
    models, load = [], load_model

    def keep(*args, **kwargs):
        models.append(load(*args, **kwargs))
        return models[-1]

    monkeypatch.setattr("ldm.checkpoint.load_model", keep)
    return models


def test_the_pictures_are_the_same(run, monkeypatch):
    monkeypatch.setattr(_machine, "STRIP_ROWS", 3)
    flags = ("--n_iter", 2, "--n_samples", 2, "--negative_prompt", "a blue square")
    with_flag = draw(run, *flags, "--low_mem", out="with")
    without = draw(run, *flags, out="without")
    assert len(with_flag) == len(without) == 4
    assert max(map(difference, with_flag, without)) <= 1
    settings = [dict(made) for _, made in with_flag]
    assert all(made.pop("batch_guidance") is False for made in settings)
    assert settings == [made for _, made in without]


def test_the_network_is_asked_for_one_conditioning_at_a_time(run, monkeypatch):
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    sizes, forward = set(), UNetModel.forward
    monkeypatch.setattr(UNetModel, "forward", lambda self, x, *a, **k: sizes.add(len(x)) or forward(self, x, *a, **k))
    draw(run, "--n_samples", 3, "--n_iter", 1, "--low_mem")
    assert sizes == {3}
    draw(run, "--n_samples", 3, "--n_iter", 1)
    assert sizes == {3, 6}


def test_a_config_that_asks_for_one_batch_gets_it(run):
    _, settings = draw(run, "--n_samples", 1, "--n_iter", 1, "--low_mem", "sampler.params.batch_guidance=true")[0]
    assert settings["batch_guidance"] is True


def test_the_text_encoder_is_away_and_the_autoencoder_in_strips(run, kept):
    draw(run, "--n_samples", 1, "--n_iter", 1, "--low_mem")
    assert not list(kept[0].cond_stage_model.parameters())
    assert kept[0].first_stage_model.strip_rows == _machine.STRIP_ROWS
    draw(run, "--n_samples", 1, "--n_iter", 1)
    assert list(kept[1].cond_stage_model.parameters()) and kept[1].first_stage_model.strip_rows is None


def test_where_it_would_say_more_than_it_weighs_the_text_encoder_stays(tiny):
    from omegaconf import OmegaConf

    model = load_model(OmegaConf.load(tiny[1]), tiny[3])
    texts = [f"{'red ' * (n % 7)}circle{' blue' * (n // 7)}" for n in range(49)]
    with torch.no_grad():
        expected = model.get_learned_conditioning(texts[:3])
        _low_mem.settle(model, torch.device("cpu"), texts)
        assert list(model.cond_stage_model.parameters())
        _low_mem.settle(model, torch.device("cpu"), texts[:3])
        assert not list(model.cond_stage_model.parameters())
        torch.testing.assert_close(model.get_learned_conditioning(texts[:3]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", ["--plms", "--dpm_solver"])
def test_other_samplers_ask_for_one_at_a_time_too(sampler, run):
    one, other = (draw(run, "--n_samples", 1, "--n_iter", 1, sampler, *flag, out=f"out{flag}")[0] for flag in FLAG)
    assert difference(one, other) <= 1
    assert other[1]["batch_guidance"] is False


def test_a_picture_to_begin_from_is_encoded_as_without(run, monkeypatch):
    monkeypatch.setattr(_machine, "STRIP_ROWS", 3)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)).save("a.png")

    def i2i(*flags):
        return run("--init-img", "a.png", *flags, script=img2img)

    one, other = (draw(i2i, "--n_samples", 1, *flag, out=f"out{flag}")[0] for flag in FLAG)
    assert difference(one, other) <= 1


def test_models_that_are_told_nothing_or_encode_their_condition_are_the_same(run, tmp_path, monkeypatch):
    """An unconditional one; and one whose conditioner is the autoencoder itself."""
    monkeypatch.setattr(_machine, "STRIP_ROWS", 3)
    model = written(tmp_path, unconditional)
    one, other = (draw(_of(run, model=model), "--n_samples", 1, *flag, out=f"out{flag}")[0] for flag in FLAG)
    assert difference(one, other) <= 1
    model = written(tmp_path, of_filling_by_concat, "concat")
    Image.new("RGB", (16, 16), "red").save("a.png")
    Image.fromarray(255 * (np.indices((16, 16))[0] < 6).astype(np.uint8)).save("m.png")
    flags = ("--init-img", "a.png", "--mask", "m.png", "--n_samples", 1)
    for k, flag in enumerate(FLAG):
        status, _, said = run(*flags, *flag, "--outdir", f"filled{k}", model=model, script=inpaint)
        assert status == 0, said
    one, other = (np.asarray(Image.open(next(Path(f"filled{k}").rglob("*.png")))).astype(int) for k in (0, 1))
    assert abs(one - other).max() <= 1


def _of(run, **how):
    return lambda *flags: run(*flags, **how)


# --- the autoencoder away from the device, which here is another that only says so


class Part(nn.Module):
    """Notes where it is sent."""

    def __init__(self, log, name):
        super().__init__()
        self.weight, self.log, self.name = nn.Parameter(torch.zeros(1)), log, name

    def to(self, device):
        self.log.append((self.name, str(device)))
        return self


def test_the_autoencoder_stays_where_the_network_leaves():
    log = []
    model = nn.Module()
    model.model, model.first_stage_model, model.cond_stage_model = (Part(log, name) for name in ("net", "vae", "text"))
    model.to = lambda device: [each.to(device) for each in model.children() if each is not None]
    _low_mem.settle(model, "cuda", [])
    assert log == [("net", "cuda"), ("text", "cuda")] and model.first_stage_model.name == "vae"
    log.clear()
    _low_mem.settle(model, "cuda", [], parks=False)
    assert ("vae", "cuda") in log
    log.clear()
    model.cond_stage_model = model.first_stage_model  # such as of models that are shown a picture
    _low_mem.settle(model, "cuda", [])
    assert ("vae", "cuda") in log


class Away(nn.Module):
    """Its device is another than its autoencoder's."""

    device = torch.device("meta")

    def __init__(self, fails=0, message="CUDA out of memory. Tried to allocate"):
        super().__init__()
        self.log, self.fails, self.message = [], fails, message
        self.first_stage_model = Part(self.log, "vae")
        self.first_stage_model.strip_rows = None

    def decode_first_stage(self, z):
        self.log.append(("decode", self.first_stage_model.strip_rows))
        if self.first_stage_model.strip_rows is None and self.fails:
            raise RuntimeError(self.message)
        return z


LATENTS = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_autoencoder_comes_to_the_device_to_decode_and_goes():
    model = Away()
    _machine.decode(model, LATENTS)
    assert model.log == [("vae", "meta"), ("decode", None), ("vae", "cpu")]


def test_it_goes_also_where_decoding_fails():
    model = Away(fails=1, message="something else")
    with pytest.raises(RuntimeError, match="something else"):
        _machine.decode(model, LATENTS)
    assert model.log[-1] == ("vae", "cpu")


@pytest.mark.parametrize("message", ["CUDA out of memory.", "DefaultCPUAllocator: can't allocate memory: you tried"])
def test_where_memory_does_not_suffice_the_autoencoder_works_in_strips(message):
    model = Away(fails=1, message=message)
    with pytest.warns(UserWarning, match="did not fit into the memory; it works in strips from here on.*--low_mem"):
        assert _machine.decode(model, LATENTS) is LATENTS
    assert [rows for what, rows in model.log if what == "decode"] == [None, _machine.STRIP_ROWS]


def test_where_strips_do_not_suffice_the_error_is_the_devices_own():
    model = Away(fails=1)
    model.decode_first_stage = lambda z: (_ for _ in ()).throw(RuntimeError("CUDA out of memory. Really"))
    model.first_stage_model.strip_rows = 8
    with pytest.raises(RuntimeError, match="Really"):
        _machine.decode(model, LATENTS)


def test_scripts_that_save_no_memory_do_not_have_the_flag(capsys):
    with pytest.raises(SystemExit):
        measure_samplers.parse(["--low_mem"])
    assert "unrecognized arguments: --low_mem" in capsys.readouterr().err
