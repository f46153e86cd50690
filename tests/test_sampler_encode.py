"""encode, decode and stochastic_encode; and what is said when numbers go wrong."""

import pytest
import torch
from _mixture import MixtureModel, rms, two_modes
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


# refinement


def there_and_back(sampler, x0, s, refine, c=None, **options):
    sampler.make_schedule(s, verbose=False)
    x, _ = sampler.encode(x0, c, s, refine=refine, **options)
    return (sampler.decode(x, c, s, **options) - x0).abs().max().item()


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_without_refinement_encode_is_what_it_was_and_asks_once_a_step(kind):
    sampler = DDIMSampler(Model(kind))
    sampler.make_schedule(10, verbose=False)
    plain, _ = sampler.encode(X_T, C, 10)
    calls = list(sampler.model.calls)
    assert torch.equal(sampler.encode(X_T, C, 10, refine=0)[0], plain)
    assert sampler.model.calls == calls * 2 and len(calls) == 10
    del sampler.model.calls[:]
    sampler.encode(X_T, C, 10, refine=2)
    assert sampler.model.calls == [call for call in calls for _ in range(3)], "each at the step's own timestep"


@pytest.mark.parametrize("kind, s, enough", [("eps", 10, 20), ("v", 10, 12), ("x0", 50, 32)])
def test_refined_encoding_is_undone_to_rounding(kind, s, enough):
    sampler, x0 = DDIMSampler(Model(kind)), X_T.double()
    errors = [there_and_back(sampler, x0, s, n, C) for n in (0, 1, 2, 3, 4)]
    assert all(after < 0.55 * before for before, after in zip(errors, errors[1:])), errors
    assert there_and_back(sampler, x0, s, enough, C) < 1e-10 < errors[0]


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_on_the_exact_denoiser_each_refinement_gains_more_where_steps_are_shorter(kind):
    mix = two_modes()
    x0, sampler = mix.sample(16, 1.0, torch.Generator().manual_seed(5)), DDIMSampler(MixtureModel(mix, kind))
    gains = []
    for s in (20, 50, 200):
        errors = [there_and_back(sampler, x0, s, n) for n in (1, 3)]
        gains.append(errors[0] / errors[1])
    assert 5 < gains[0] and 3 * gains[0] < 3 * gains[1] < gains[2], gains
    assert there_and_back(sampler, x0, 50, 15) < 1e-10


def test_refinement_goes_with_guidance_rescale_and_interval():
    sampler = DDIMSampler(Stretched())
    guidance = {"unconditional_guidance_scale": 2.0, "unconditional_conditioning": U, "guidance_rescale": 0.5}
    options = guidance | {"guidance_interval": (20, 80)}
    errors = [there_and_back(sampler, X_T.double(), 40, n, C, **options) for n in (0, 2, 20)]
    assert errors[2] < 1e-10 < errors[1] < 0.1 * errors[0], errors


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_refinement_reaches_pure_noise_and_comes_back_where_the_network_tells(kind):
    """At zero terminal SNR the last step up forgets nothing of v; decode starts from alpha-bar 0."""
    sampler = DDIMSampler(Model(kind, zero_snr=True))
    sampler.make_schedule(50, "trailing", verbose=False)
    x, _ = sampler.encode(X_T.double(), C, 50, refine=40)
    assert sampler.levels().alpha_bar[-1] == 0 and rms(sampler.decode(x, C, 50) - X_T) < 1e-10


def test_refinement_of_part_of_the_way_and_of_the_original_steps():
    sampler = DDIMSampler(Model("v"))
    sampler.make_schedule(20, verbose=False)
    for steps, original in ((8, False), (60, True)):
        x, _ = sampler.encode(X_T.double(), C, steps, original, refine=12)
        assert (sampler.decode(x, C, steps, use_original_steps=original) - X_T).abs().max() < 1e-10


def test_refinement_that_diverges_is_told_of():
    class Steep(Model):
        def apply_model(self, x, t, c):
            return torch.sin(20 * x)

    sampler = DDIMSampler(Steep())
    sampler.make_schedule(5, verbose=False)
    with pytest.warns(UserWarning, match="refine went away from a solution at . of 5 steps.*more steps S") as caught:
        sampler.encode(X_T, None, 5, refine=3)
    assert {w.filename for w in caught} == {__file__}


@pytest.mark.parametrize("refine", [-1, 1.5, "abc", None])
def test_a_number_of_refinements_that_cannot_be_is_refused(refine):
    sampler = DDIMSampler(Model())
    sampler.make_schedule(5, verbose=False)
    with pytest.raises(ValueError, match=f"refine = {refine!r}: give a number of iterations"):
        sampler.encode(X_T, None, 5, refine=refine)
    with pytest.raises(TypeError, match="'refin': did you mean refine"):
        sampler.encode(X_T, None, 5, refin=1)
