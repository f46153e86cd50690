"""encode, decode and stochastic_encode; and what is said when numbers go wrong."""

import pytest
import torch
from _small_model import X_T, C, Model, U, run

from ldm.sampling import DDIMSampler


def test_encode_keeps_about_as_many_intermediates_as_asked_for():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(20, verbose=False)
    heard = []
    x, out = sampler.encode(X_T, None, 20, return_intermediates=4, callback=heard.append)
    assert out["intermediate_steps"] == [0, 5, 10, 15, 18, 19] and len(out["intermediates"]) == 6
    assert torch.equal(out["intermediates"][-1], x) and heard == list(range(20))
    assert sampler.encode(X_T, None, 3, return_intermediates=9)[1]["intermediate_steps"] == [0, 1, 2]
    assert "intermediates" not in sampler.encode(X_T, None, 3)[1]


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_decode_retraces_encode_for_every_prediction(kind):
    sampler, errors = DDIMSampler(Model(kind, 400)), []
    for s in (20, 40, 80):
        sampler.make_schedule(s, verbose=False)
        x, _ = sampler.encode(X_T.double(), C, s)
        errors.append((sampler.decode(x, C, s) - X_T).abs().max().item())
    assert errors[2] < 0.75 * errors[1] < 0.75**2 * errors[0], errors


def test_a_level_beyond_the_schedule_is_refused():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(10, verbose=False)
    with pytest.raises(ValueError, match="t = 10: there are 10 levels; choose from 0 to 9"):
        sampler.stochastic_encode(X_T, 10)
    with pytest.raises(ValueError, match="t_start = 11: there are 10 steps"):
        sampler.decode(X_T, None, 11)
    assert torch.equal(sampler.decode(X_T, None, 0), X_T)


def test_nan_names_the_first_timestep():
    class Broken(Model):
        def apply_model(self, x, t, c):
            out = super().apply_model(x, t, c)
            return out * float("nan") if t[0] <= 41 else out

    sampler = DDIMSampler(Broken())
    with pytest.raises(FloatingPointError, match="after step 7 of 10, at timestep 31.*float32"):
        run(10, sampler, timesteps=[91, 81, 71, 61, 55, 51, 31, 21, 11, 1])
    with pytest.raises(FloatingPointError, match="after step 1 of 10, at timestep 1,"):
        sampler.encode(X_T, None, 10)


class Stretched(Model):
    """Its output's spread depends on the conditioning, so that rescaling guidance means something."""

    def apply_model(self, x, t, c):
        return super().apply_model(x, t, c) * (1 + 0.3 * c.reshape(-1, 1, 1))


def test_encode_is_guided_as_decode_is():
    def encoded(**options):
        model = Stretched()
        sampler = DDIMSampler(model)
        sampler.make_schedule(10, verbose=False)
        guidance = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": U}
        return sampler.encode(X_T, C, 10, **guidance | options)[0], [t for b, t in model.calls if b == 6]

    plain, everywhere = encoded()
    assert everywhere == list(range(1, 100, 10))
    apart, together = encoded(batch_guidance=False)
    torch.testing.assert_close(apart, plain)
    assert together == []
    assert encoded(guidance_interval=(21, 41))[1] == [21, 31, 41]
    assert encoded(guidance_interval=(-1, 20))[1] == [1, 11], "the steps go up"
    assert not torch.isclose(encoded(guidance_rescale=0.7)[0], plain).all()


def test_decode_retraces_an_encode_with_rescaled_guidance_in_an_interval():
    sampler, errors = DDIMSampler(Stretched(timesteps=400)), []
    guidance = {"unconditional_guidance_scale": 1.5, "unconditional_conditioning": U}
    for s in (20, 80):
        sampler.make_schedule(s, verbose=False)
        options = guidance | {"guidance_rescale": 0.7, "guidance_interval": (100, 300)}
        x, _ = sampler.encode(X_T.double(), C, s, **options)
        errors.append((sampler.decode(x, C, s, **options) - X_T).abs().max().item())
    assert errors[1] < 0.5 * errors[0]


def test_the_constructors_options_reach_encode():
    model = Model()
    sampler = DDIMSampler(model, batch_guidance=False, clip_x0=0.5)
    sampler.make_schedule(5, verbose=False)
    sampler.encode(X_T, C, 5, unconditional_guidance_scale=3.0, unconditional_conditioning=U)
    assert {b for b, _ in model.calls} == {3}


def test_encode_checks_its_conditionings_as_sample_does():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(5, verbose=False)
    with pytest.warns(UserWarning, match="unconditional_guidance_scale has no effect"):
        sampler.encode(X_T, C, 5, unconditional_guidance_scale=3.0)
    with pytest.raises(TypeError, match="in the same form"):
        sampler.encode(X_T, {"c": C}, 5, unconditional_guidance_scale=3.0, unconditional_conditioning=U)
    with pytest.raises(TypeError, match="encode has no argument 'clip_x0'"):
        sampler.encode(X_T, C, 5, clip_x0=True)


@pytest.mark.parametrize("progress", [False, True])
def test_encode_shows_a_bar_where_told(capsys, progress):
    sampler = DDIMSampler(Model())
    sampler.make_schedule(5, verbose=False)
    sampler.encode(X_T, None, 5, progress=progress)
    assert ("Encoding" in capsys.readouterr().err) == progress


def test_the_error_of_a_start_says_what_is_accepted():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(10, verbose=False)
    with pytest.raises(ValueError, match="t_start = 11: .*choose from 0 to 10"):
        sampler.decode(X_T, None, 11)
    with pytest.raises(ValueError, match="t_enc = 0: .*choose from 1 to 10"):
        sampler.encode(X_T, None, 0)
    for start in (2.5, "abc", None):
        with pytest.raises(ValueError, match=f"t_start = {start!r}"):
            sampler.decode(X_T, None, start)


def test_what_cannot_be_noised_is_refused_by_value():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(10, verbose=False)
    for t in ([1, 2], [[1, 2, 3]], []):
        with pytest.raises(ValueError, match="t has shape .*, but x0 has 3 samples"):
            sampler.stochastic_encode(X_T, torch.tensor(t, dtype=torch.long))
    with pytest.raises(ValueError, match="t = 2.5: there are 10 levels; .* whole"):
        sampler.stochastic_encode(X_T, 2.5)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 2, 4\), but x0 has \(3, 2, 4\)"):
        sampler.stochastic_encode(X_T, 1, noise=X_T[:2])
    with pytest.raises(TypeError, match="noise is a ndarray"):
        sampler.stochastic_encode(X_T, 1, noise=X_T.numpy())
    one = sampler.stochastic_encode(X_T, torch.tensor([4], dtype=torch.uint8), noise=X_T[:1])
    assert torch.equal(one, sampler.stochastic_encode(X_T, 4, noise=X_T[:1].expand_as(X_T)))


def test_decode_and_encode_tell_an_array_how_to_become_a_tensor():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(5, verbose=False)
    with pytest.raises(TypeError, match="x_latent is a ndarray.*torch.from_numpy"):
        sampler.decode(X_T.numpy(), None, 5)
    with pytest.raises(TypeError, match="x0 is a ndarray.*torch.from_numpy"):
        sampler.encode(X_T.numpy(), None, 5)
