"""Guidance with a scale for the text and one for the picture (InstructPix2Pix, Brooks et al. 2023, eq. 3)."""

import pytest
import torch
from _mixture import MixtureModel, levels, randn, reference_ddim, two_modes
from _small_model import C, Model, U, guided, run

from ldm.sampling import DDIMSampler, DPMSolverSampler, PLMSSampler
from ldm.sampling.guidance import chain, guided_output, pair_conditionings

B = 3
X = randn(B, 1, 2, 2, seed=22)
BOTH, PICTURE, NOTHING = (  # as InstructPix2Pix has them: the picture beside the latents, the text in cross-attention
    {"c_concat": [picture], "c_crossattn": [text]}
    for picture, text in [
        (randn(B, 1, 2, 2, seed=1), randn(B, 4, 5, seed=2)),
        (randn(B, 1, 2, 2, seed=1), randn(B, 4, 5, seed=3)),
        (torch.zeros(B, 1, 2, 2, dtype=torch.float64), randn(B, 4, 5, seed=3)),
    ]
)


def sample(model, cls=DDIMSampler, s=6, text=7.5, picture=1.5, uncond=NOTHING, image=PICTURE, **options):
    return cls(model).sample(
        s, B, (1, 2, 2), BOTH, x_T=X, progress=False, unconditional_guidance_scale=text,
        unconditional_conditioning=uncond, image_conditioning=image, image_guidance_scale=picture, **options,
    )[0]  # fmt: skip


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("picture, text", [(1.5, 7.5), (1.2, 3.0), (0.0, 2.0), (1.0, 5.0), (2.0, 1.0), (3.0, 3.0)])
def test_the_samples_are_those_of_the_papers_equation(picture, text):
    mix, model = two_modes(), MixtureModel(two_modes())
    shift = {k: sum(leaf[0].flatten(1).mean(1) for leaf in c.values()) for k, c in enumerate((NOTHING, PICTURE, BOTH))}
    sampler = DDIMSampler(model)
    out, _ = sampler.sample(
        6, B, (1, 2, 2), BOTH, x_T=X, progress=False, unconditional_guidance_scale=text,
        unconditional_conditioning=NOTHING, image_conditioning=PICTURE, image_guidance_scale=picture,
    )  # fmt: skip

    def eps(x, a):
        nothing, alone, both = (mix.eps(x, a, shift[k]) for k in range(3))
        return nothing + picture * (alone - nothing) + text * (both - alone)

    close(out, reference_ddim(eps, X, levels(sampler, model.alpha_bar[0])))


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_it_is_the_same_whatever_the_network_predicts(kind):
    close(sample(MixtureModel(two_modes(), kind)), sample(MixtureModel(two_modes())))


@pytest.mark.parametrize("cls", [DDIMSampler, PLMSSampler, DPMSolverSampler])
def test_one_call_gives_what_three_give(cls):
    one, three = MixtureModel(two_modes()), MixtureModel(two_modes())
    close(sample(one, cls), sample(three, cls, batch_guidance=False))
    assert set(one.batches) == {3 * B} and set(three.batches) == {B} and len(three.batches) == 3 * len(one.batches)


@pytest.mark.parametrize(
    "picture, text, asked",
    [(1.5, 7.5, 3), (1.0, 7.5, 2), (7.5, 7.5, 2), (1.5, 1.0, 3), (1.0, 1.0, 1)],
)
@pytest.mark.filterwarnings("ignore:unconditional_conditioning has no effect")
def test_the_model_is_not_asked_for_what_cancels(picture, text, asked):
    model = MixtureModel(two_modes())
    sample(model, picture=picture, text=text)
    assert set(model.batches) == {asked * B}


def test_equal_scales_are_guidance_away_from_nothing():
    model = MixtureModel(two_modes())
    plain = DDIMSampler(model).sample(
        6, B, (1, 2, 2), BOTH, x_T=X, progress=False, unconditional_guidance_scale=3.0,
        unconditional_conditioning=NOTHING,
    )[0]  # fmt: skip
    close(sample(model, picture=3.0, text=3.0), plain)


def test_without_an_unconditional_conditioning_the_picture_is_what_text_leads_away_from():
    conds, scales = chain("both", None, 3.0, "picture", 3.0)
    assert conds == ["picture", "both"] and scales == [3.0]
    with pytest.warns(UserWarning, match="image_guidance_scale has no effect: there is no unconditional_conditioning"):
        out = sample(MixtureModel(two_modes()), uncond=None)
    close(out, sample(MixtureModel(two_modes()), uncond=PICTURE, image=None, picture=None))


def test_outside_the_interval_both_scales_are_one():
    model = MixtureModel(two_modes())
    sample(model, s=10, guidance_interval=(200, 600))
    inside = [200 <= t[0] <= 600 for t in model.times]
    assert [n == 3 * B for n in model.batches] == inside and set(model.batches) == {B, 3 * B}


def test_the_scale_may_be_said_once_for_the_sampler():
    model = Model()
    said = DDIMSampler(model, image_guidance_scale=1.5)
    options = guided(image_conditioning=C - U)
    assert torch.equal(
        run(sampler=said, **options), run(sampler=DDIMSampler(model), image_guidance_scale=1.5, **options)
    )


def test_encode_is_guided_by_both_scales():
    model = MixtureModel(two_modes())
    sampler = DDIMSampler(model)
    sampler.make_schedule(500, verbose=False)
    options = {
        "unconditional_guidance_scale": 1.3, "unconditional_conditioning": NOTHING,
        "image_conditioning": PICTURE, "image_guidance_scale": 1.2,
    }  # fmt: skip
    z, _ = sampler.encode(X, BOTH, 500, refine=8, progress=False, **options)
    close(sampler.decode(z, BOTH, 500, **options), X, 1e-4)
    with pytest.raises(AssertionError):
        close(sampler.decode(z, BOTH, 500, **options | {"image_guidance_scale": 2.5}), X, 1e-2)


def test_rescaling_gives_the_deviation_of_the_conditional_output():
    model = MixtureModel(two_modes())
    t, x = torch.full((B,), 500), X
    out = guided_output(model, x, t, BOTH, NOTHING, 7.5, image=PICTURE, image_scale=1.5, rescale=1.0)
    given = model.apply_model(x, t, BOTH)
    close(out.flatten(1).std(1), given.flatten(1).std(1))


def test_three_conditionings_are_paired_leaf_by_leaf_or_not_at_all():
    a, b, c = (torch.full((2, 3), float(k)) for k in range(3))
    joined = pair_conditionings({"x": [a, None]}, {"x": [b, None]}, {"x": [c, None]})
    assert torch.equal(joined["x"][0], torch.cat([a, b, c])) and joined["x"][1] is None
    assert pair_conditionings(a, b[:, :2], c) is None and pair_conditionings([a], [b, b], [c]) is None
    assert pair_conditionings(1, 1, 2) is None and pair_conditionings(1, a, 1) is None


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"image_conditioning": C[:2]},
            "image_conditioning has shape .2,., so it is for 2 samples, but batch_size is 3",
        ),
        (
            {"image_conditioning": {"c_crossattn": [C]}},
            "image_conditioning is a dict, but the conditioning is a Tensor",
        ),
        ({"image_conditioning": U, "image_guidance_scale": float("nan")}, "image_guidance_scale = nan: give a finite"),
        ({"image_conditioning": U, "image_guidance_scale": "2"}, "image_guidance_scale = '2'"),
    ],
)
def test_what_does_not_fit_is_said(options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        run(**guided(**options))


def test_a_scale_without_a_picture_has_no_effect():
    with pytest.warns(UserWarning, match="image_guidance_scale has no effect: there is no image_conditioning"):
        out = run(image_guidance_scale=2.0, **guided())
    assert torch.equal(out, run(**guided()))
