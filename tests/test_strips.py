"""The autoencoder in strips and in slices gives what it gives whole, and takes less memory."""

import os
import subprocess
import sys

import pytest
import torch
from _networks import golden, golden_weights, randn
from test_autoencoder import SMALL_KL

from ldm.models import strips
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.diffusionmodules.layers import ResnetBlock
from ldm.modules.diffusionmodules.model import Decoder, Encoder

CONFIGS = {
    "three levels": {"ch_mult": [1, 2, 2]},
    "attention at a level": {"ch_mult": [1, 1], "attn_resolutions": [16]},
    "no attention": {"attn_type": "none"},
    "no convolution where it resizes": {"ch_mult": [1, 2], "resamp_with_conv": False},
    "tanh": {"tanh_out": True},
    "the features before the last norm": {"ch_mult": [2, 1], "give_pre_end": True},
}
DECODER_ONLY = ("tanh_out", "give_pre_end")


def network(kind, name):
    options = {**SMALL_KL, **CONFIGS[name]}
    if kind is Encoder:
        options = {k: v for k, v in options.items() if k not in DECODER_ONLY}
    return golden_weights(kind(**options)).double()


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 12, 1000])
@pytest.mark.parametrize("name", CONFIGS)
def test_strips_of_any_height_give_what_the_whole_gives(name, rows):
    """In float64, where an approximation would show."""
    decoder, encoder = network(Decoder, name), network(Encoder, name)
    z, x = randn(2, 4, 6, 5, dtype=torch.float64), randn(2, 3, 24, 20, dtype=torch.float64)
    torch.testing.assert_close(strips.decode(decoder, z, rows), decoder(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(strips.encode(encoder, x, rows), encoder(x), rtol=0, atol=1e-12)


def test_a_shortcut_of_3x3_sees_the_rows_beside_its_strip_too():
    decoder = network(Decoder, "three levels")
    decoder.up[0].block[0] = golden_weights(ResnetBlock(64, 32, temb_channels=0, conv_shortcut=True)).double()
    decoder.double()
    z = randn(1, 4, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(strips.decode(decoder, z, 3), decoder(z), rtol=0, atol=1e-12)


def test_statistics_hold_where_the_mean_is_large_and_strips_differ():
    """As a sum of squares they would cancel in float32."""
    x = randn(1, 32, 40, 8) + 1000 + 50 * torch.linspace(-1, 1, 40)[:, None]
    mean, variance = strips._moments(strips._whole(x), 32, rows=3)
    exact = x.double().reshape(1, 32, -1)
    torch.testing.assert_close(mean.double(), exact.mean(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var(-1, correction=0), rtol=1e-5, atol=0)


def test_the_input_is_left_as_it_is():
    decoder, encoder = network(Decoder, "three levels"), network(Encoder, "three levels")
    for run, net, x in ((strips.decode, decoder, randn(1, 4, 6, 5)), (strips.encode, encoder, randn(1, 3, 8, 8))):
        x = x.double()
        before = x.clone()
        run(net, x, 2)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["autoencoder_kl", "vq_f4", "vq_attn"])
@torch.no_grad()
def test_an_autoencoder_in_strips_gives_what_the_original_gives(name):
    model, z = golden(name)
    model.strip_rows = 3
    encoded = model.encode(z["in_x"])
    h, expected = (encoded, z["out_h"]) if "out_h" in z else (encoded.mode(), z["out_mean"])
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.decode(expected), z["out_decoded"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 0.06), (torch.float16, 0.01)], ids=str)
@torch.no_grad()
def test_in_half_precision_strips_are_as_near_to_the_truth_as_the_whole(dtype, atol):
    model, z = golden_weights(AutoencoderKL(SMALL_KL, embed_dim=4)), randn(1, 4, 12, 12)
    truth = model.decode(z)
    whole = (model.to(dtype).decode(z).float() - truth).abs().max()
    model.strip_rows = 5
    pictures = model.decode(z)
    assert pictures.dtype == dtype
    assert (pictures.float() - truth).abs().max() < max(2 * whole, atol)


@torch.no_grad()
def test_large_pictures_are_taken_one_at_a_time_and_small_ones_together(monkeypatch):
    model, seen = golden_weights(AutoencoderKL(SMALL_KL, embed_dim=4)), []
    for part in (model.encoder, model.decoder):
        part.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    z, x = randn(5, 4, 8, 8), randn(5, 3, 16, 16)
    expected = model.decode(z), model.encode(x).mode()
    assert seen == [5, 5]
    monkeypatch.setattr("ldm.models.autoencoder._AT_ONCE", 2 * 16 * 16)
    seen.clear()
    torch.testing.assert_close((model.decode(z), model.encode(x).mode()), expected, rtol=0, atol=1e-5)
    assert seen == 2 * [2, 2, 1]
    monkeypatch.setattr("ldm.models.autoencoder._AT_ONCE", 1)
    seen.clear()
    model.decode(z[:2])
    assert seen == [1, 1]
    assert model.decode(z[:0]).shape == (0, 3, 16, 16)


def test_with_gradients_it_is_whole():
    model = golden_weights(AutoencoderKL(SMALL_KL, embed_dim=4))
    z = randn(2, 4, 4, 4).requires_grad_()
    (expected,) = torch.autograd.grad(model.decode(z).square().sum(), z)
    model.strip_rows = 2
    (gradient,) = torch.autograd.grad(model.decode(z).square().sum(), z)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("rows", [0, -3, 2.5, "32", True])
def test_a_number_of_rows_that_is_none_is_an_error(rows):
    model = AutoencoderKL(SMALL_KL, embed_dim=4)
    with pytest.raises(ValueError, match="strip_rows=.*give a number of rows, 1 or more, such as 32, or None"):
        model.strip_rows = rows
    assert model.strip_rows is None


@torch.no_grad()
def test_in_strips_the_encoder_still_names_the_pictures_it_takes():
    model = AutoencoderKL(SMALL_KL, embed_dim=4)
    model.strip_rows = 4
    with pytest.raises(ValueError, match="H and W divisible by 2, got .*; resize or crop"):
        model.encode(torch.zeros(1, 3, 16, 15))


_PEAK = """
import torch
from ldm.modules.diffusionmodules.model import Decoder
from ldm.models import strips
decoder = Decoder(ch=32, out_ch=3, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[], attn_type="none",
                  in_channels=3, resolution=64, z_channels=4).eval()
run = {run}
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
with torch.no_grad():
    run(torch.randn(1, 4, 8, 8))
    before = memory("VmRSS")
    run(torch.randn(1, 4, 192, 192))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_strips_take_less_than_half_of_the_memory():
    def peak(run):
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed is given back
        command = [sys.executable, "-c", _PEAK.format(run=run)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return float(out.stdout)

    assert peak("lambda z: strips.decode(decoder, z, 16)") < 0.5 * peak("decoder")
