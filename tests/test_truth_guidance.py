"""Guidance: its algebra, the conditionings that it takes, and the Gaussians for which it is a closed form."""

import pytest
import torch
from _mixture import Mixture, MixtureModel, levels, one_mode, randn, reference_ddim, two_modes

from ldm.sampling import DDIMSampler

B = 3
C = randn(B, 4, 5, seed=20)
U = randn(B, 4, 5, seed=21)
X_T = randn(B, 1, 2, 2, seed=22)


def run(model, s=8, **options):
    return DDIMSampler(model).sample(s, B, (1, 2, 2), x_T=X_T, progress=False, **options)[0]


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_scale_one_is_the_conditional_model_alone(kind):
    model = MixtureModel(two_modes(), kind)
    with pytest.warns(UserWarning, match="unconditional_conditioning"):
        one = run(model, conditioning=C, unconditional_conditioning=U, unconditional_guidance_scale=1.0)
    close(one, run(model, conditioning=C))
    assert set(model.batches) == {B}, "nothing unconditional is computed where it has no weight"


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_scale_zero_is_the_unconditional_model(kind):
    model = MixtureModel(two_modes(), kind)
    guided = run(model, conditioning=C, unconditional_conditioning=U, unconditional_guidance_scale=0.0)
    close(guided, run(model, conditioning=U))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0, 7.5])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_guidance_between_gaussians_is_the_gaussian_with_the_extrapolated_mean(kind, scale):
    """With equal variances eps is affine in the mean, so u + w (c - u) is again the eps of a Gaussian."""
    mixed = (U + scale * (C - U)).mean((1, 2)).reshape(B, 1)
    guided = run(
        MixtureModel(one_mode(), kind), conditioning=C, unconditional_conditioning=U, unconditional_guidance_scale=scale
    )
    close(guided, run(MixtureModel(one_mode(), kind), conditioning=mixed))


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_guidance_of_a_mixture_is_the_weighted_difference_of_the_two_exact_models(scale):
    mix, model = two_modes(), MixtureModel(two_modes())
    c, u = C.mean((1, 2)), U.mean((1, 2))
    sampler = DDIMSampler(model)
    out, _ = sampler.sample(
        9, B, mix.shape, C, x_T=X_T, unconditional_guidance_scale=scale, unconditional_conditioning=U, progress=False
    )

    def eps(x, a):
        return mix.eps(x, a, u) + scale * (mix.eps(x, a, c) - mix.eps(x, a, u))

    close(out, reference_ddim(eps, X_T, levels(sampler, model.alpha_bar[0])))


def halves(x):
    return x[:, :2], x[:, 2:]


CONDITIONINGS = {
    "tensor": lambda x: x,
    "list": lambda x: list(halves(x)),
    "dict": lambda x: {"c_concat": [halves(x)[0]], "c_crossattn": [halves(x)[1]]},
    "dict of tensors": lambda x: dict(zip("ab", halves(x))),
    "nested": lambda x: {"a": {"b": [halves(x)[0], None]}, "c": halves(x)[1], "d": None},
}


@pytest.mark.parametrize("form", CONDITIONINGS)
def test_every_form_of_conditioning_is_paired_leaf_by_leaf_in_one_call(form):
    pack, model = CONDITIONINGS[form], MixtureModel(two_modes())
    out = run(model, conditioning=pack(C), unconditional_conditioning=pack(U), unconditional_guidance_scale=3.0)
    assert set(model.batches) == {2 * B}

    class Check(MixtureModel):
        def apply_model(self, x, t, c):
            both = pack(U), pack(C)
            shift = [sum(leaf.flatten(1).mean(1) for leaf in leaves(side)) for side in both]
            return self.mixture.eps(x, self.alphas_cumprod[t], shift[0] + 3.0 * (shift[1] - shift[0]))

    def leaves(c):
        if c is None:
            return []
        return [c] if torch.is_tensor(c) else [x for y in (c.values() if isinstance(c, dict) else c) for x in leaves(y)]

    single = MixtureModel(one_mode())
    close(
        run(single, conditioning=pack(C), unconditional_conditioning=pack(U), unconditional_guidance_scale=3.0),
        run(Check(one_mode())),
    )
    assert torch.isfinite(out).all()


def test_the_model_gets_its_conditioning_in_the_form_it_was_given():
    seen = []

    class Spy(MixtureModel):
        def apply_model(self, x, t, c):
            seen.append(c)
            return super().apply_model(x, t, c)

    pack = CONDITIONINGS["nested"]
    run(Spy(two_modes()), 2, conditioning=pack(C), unconditional_conditioning=pack(U), unconditional_guidance_scale=2.0)
    c = seen[0]
    assert set(c) == {"a", "c", "d"} and c["d"] is None and c["a"]["b"][1] is None
    assert isinstance(c["a"]["b"], list) and len(c["c"]) == 2 * B


def test_no_conditioning_reaches_the_model_as_none():
    class Strict(MixtureModel):
        def apply_model(self, x, t, c):
            assert c is None
            return super().apply_model(x, t, c)

    assert torch.isfinite(run(Strict(two_modes()))).all()


def test_integer_labels_stay_integers():
    class Labels(MixtureModel):
        def apply_model(self, x, t, c):
            assert c.dtype == torch.long and c.shape == (len(x),)
            return super().apply_model(x, t, c.to(x) / 10)

    labels, none = torch.tensor([1, 2, 3]), torch.tensor([9, 9, 9])
    guide = {"unconditional_conditioning": none, "unconditional_guidance_scale": 2.0}
    out = run(Labels(one_mode()), conditioning=labels, **guide)
    close(out, run(MixtureModel(one_mode()), conditioning=(2 * labels - none).double().reshape(B, 1) / 10))


def test_conditionings_of_different_lengths_take_two_calls_and_say_the_same():
    model = MixtureModel(two_modes())
    longer = torch.cat([U, U], dim=1)  # the same per-sample mean, so the same meaning
    options = {"conditioning": C, "unconditional_guidance_scale": 3.0}
    two = run(model, 4, unconditional_conditioning=longer, **options)
    assert model.batches == [B] * 8
    close(two, run(model, 4, unconditional_conditioning=U, **options))


def test_two_calls_on_request_say_the_same_as_one():
    model = MixtureModel(two_modes())
    options = {"conditioning": C, "unconditional_conditioning": U, "unconditional_guidance_scale": 3.0}
    two = run(model, 4, batch_guidance=False, **options)
    assert model.batches == [B] * 8
    close(two, run(model, 4, **options))
    assert model.batches[8:] == [2 * B] * 4


def test_a_schedule_of_scales_is_taken_step_by_step():
    mix, model, scales = two_modes(), MixtureModel(two_modes()), [0.0, 1.0, 5.0, 2.0]
    c, u, it = C.mean((1, 2)), U.mean((1, 2)), iter([0.0, 1.0, 5.0, 2.0])
    sampler = DDIMSampler(model)
    out, _ = sampler.sample(
        4, B, mix.shape, C, x_T=X_T, unconditional_conditioning=U, ucg_schedule=scales, progress=False
    )

    def eps(x, a):
        w = next(it)
        return mix.eps(x, a, u) + w * (mix.eps(x, a, c) - mix.eps(x, a, u))

    close(out, reference_ddim(eps, X_T, levels(sampler, model.alpha_bar[0])))


def test_a_guidance_interval_over_everything_is_plain_guidance_and_over_nothing_none():
    model = MixtureModel(two_modes())
    options = {"conditioning": C, "unconditional_conditioning": U, "unconditional_guidance_scale": 4.0}
    plain = run(model, **options)
    close(run(model, guidance_interval=(0, 1000), **options), plain)
    with pytest.warns(UserWarning, match="unconditional_conditioning"):
        nowhere = run(model, guidance_interval=(0, 0), **options)
    close(nowhere, run(model, conditioning=C))


def test_guidance_rescale_gives_the_guided_prediction_the_spread_of_the_conditional_one():
    """Lin et al. 2023, eq. 15-16: at 1 each sample has the conditional model's spread, at 0 its own."""
    mix = Mixture(randn(1, 1, 4, 4, seed=3), 0.5)
    x = randn(B, 1, 4, 4, seed=4)
    c, u = randn(B, 16, seed=5), randn(B, 16, seed=6)

    class Textured(MixtureModel):
        def apply_model(self, x, t, c):
            return super().apply_model(x, t, None) + c.to(x).reshape(-1, 1, 4, 4)

    sampler = DDIMSampler(Textured(mix))

    def first_eps(**options):
        step = sampler.sample(5, B, mix.shape, c, x_T=x, log_every_t=1, progress=False, **options)[1]
        a = levels(sampler, 1.0)[0]
        return (x - a**0.5 * step["pred_x0"][1]) / (1 - a) ** 0.5

    guide = {"unconditional_conditioning": u, "unconditional_guidance_scale": 6.0}
    conditional, plain = first_eps(), first_eps(**guide)
    full, half = first_eps(guidance_rescale=1.0, **guide), first_eps(guidance_rescale=0.5, **guide)
    close(full.flatten(1).std(1), conditional.flatten(1).std(1), 1e-7)
    close(half, 0.5 * full + 0.5 * plain, 1e-7)
    close(first_eps(guidance_rescale=0.0, **guide), plain, 1e-7)
    assert (plain.flatten(1).std(1) > 1.5 * conditional.flatten(1).std(1)).all()
