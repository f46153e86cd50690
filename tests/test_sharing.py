"""What the conditionings of a run share: the same numbers as apart, and nothing where somebody looks on."""

import copy
import gc
import weakref

import pytest
import torch
from _text_model import SHAPE, X_T, apart, close, counted, sampled, text, text_model
from torch import nn

from ldm.modules.attention import CrossAttention
from ldm.sampling import DDIMSampler

# ------------------------------------------------------------------------------------------------- the same numbers

PICTURE = torch.linspace(-1, 1, 2 * 4 * 64, dtype=torch.float64).view(2, *SHAPE)
HYBRID = {
    "conditioning": {"c_concat": [PICTURE], "c_crossattn": [text(1)]},
    "unconditional_conditioning": {"c_concat": [PICTURE], "c_crossattn": [text(2)]},
}
CASES = {
    "text": {},
    "text as a dict, in two parts": {
        "conditioning": {"c_crossattn": [text(1), text(3)]},
        "unconditional_conditioning": {"c_crossattn": [text(2), text(4)]},
    },
    "without guidance": {"unconditional_conditioning": None, "unconditional_guidance_scale": 1.0},
    "two scales": {"image_conditioning": text(3), "image_guidance_scale": 1.5},
    "two equal scales": {"image_conditioning": text(3), "image_guidance_scale": 3.0},
    "one scale of two is 1": {"image_conditioning": text(3), "image_guidance_scale": 1.0},
    "an interval": {"guidance_interval": (20, 70), "s": 5},
    "a scale for each step": {"ucg_schedule": [1.0, 2.0, 0.0]},
    "noise and rescaled": {"eta": 1.0, "seeds": [1, 2], "guidance_rescale": 0.7},
    "one sample": {"x_T": X_T[:1], "conditioning": text(1, 1), "unconditional_conditioning": text(2, 1)},
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_shared_changes_no_number(case, monkeypatch):
    model = text_model()
    expected = apart(model, **CASES[case])
    batches = counted(model, monkeypatch)
    close(sampled(model, **CASES[case]), expected)
    assert set(batches) == {len(CASES[case].get("x_T", X_T))}, "the latents were repeated"


@pytest.mark.parametrize("network", [
    {"attention_resolutions": [1]}, {"attention_resolutions": []}, {"num_res_blocks": 2, "transformer_depth": 2},
    {"use_scale_shift_norm": True, "resblock_updown": True}, {"use_linear_in_transformer": True},
    {"disable_self_attentions": [True, True]}, {"use_checkpoint": True},
], ids=str)  # fmt: skip
def test_it_changes_no_number_wherever_the_first_cross_attention_is(network):
    model = text_model(**network)
    close(sampled(model), apart(model))


def test_a_picture_beside_the_latents_is_shared_if_it_is_the_same(monkeypatch):
    model = text_model("hybrid", in_channels=8)
    expected = apart(model, **HYBRID)
    batches = counted(model, monkeypatch)
    close(sampled(model, **HYBRID), expected)
    another = {"c_concat": [PICTURE.clone()], "c_crossattn": [text(2)]}
    close(sampled(model, **HYBRID | {"unconditional_conditioning": another}), expected)
    assert batches == [2] * 3 + [4] * 3
    none = {"c_concat": [torch.zeros_like(PICTURE)], "c_crossattn": [text(2)]}
    options = HYBRID | {"unconditional_conditioning": none}
    close(sampled(model, **options), apart(model, **options))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_several_contexts_for_each_picture_say_what_as_many_calls_say(n):
    network, t = text_model().model.diffusion_model, torch.tensor([7, 63])
    contexts = [text(seed) for seed in range(n)]
    together = network(X_T, t, torch.cat(contexts))
    close(together, torch.cat([network(X_T, t, context) for context in contexts]))
    with pytest.raises(ValueError, match=r"context has shape \(3, 5, 12\)"):
        network(X_T, t, text(0, 3))


def test_in_inference_mode_and_under_autocast_it_is_the_same():
    model = text_model().float()
    options = {"x_T": X_T.float(), "conditioning": text(1).float(), "unconditional_conditioning": text(2).float()}
    expected = apart(model, **options)
    with torch.inference_mode():
        torch.testing.assert_close(sampled(model, **options), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sampled(model, **options), apart(model, **options), rtol=0, atol=0.02)


# ---------------------------------------------------------------------------------------------- once in a whole run


def projections(model, monkeypatch):
    """How often a key is computed from a text, from now on, over all layers."""
    layers = [m for m in model.modules() if isinstance(m, CrossAttention) and m.to_k.in_features == 12]
    weights, count, linear = [layer.to_k.weight for layer in layers], [], torch.nn.functional.linear

    def counting(x, weight, *rest):
        count.extend(w for w in weights if w is weight)
        return linear(x, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    return count, len(layers)


@pytest.mark.parametrize("case", ["text", "without guidance", "two scales"])
def test_keys_of_the_text_are_computed_once_a_run(case, monkeypatch):
    model = text_model()
    count, layers = projections(model, monkeypatch)
    for runs in (1, 2):
        sampled(model, **CASES[case])
        assert layers > 2 and len(count) == runs * layers


def test_with_gradients_nothing_is_kept(monkeypatch):
    model, shared = text_model(), None
    shared = model.share_latents([text(1)])
    count, layers = projections(model, monkeypatch)
    x = X_T.clone().requires_grad_()
    for _ in range(2):
        model.apply_model(x, torch.tensor([5, 5]), shared).sum().backward()
    assert len(count) == 2 * layers and not shared["c_crossattn"][0].kept and x.grad.abs().sum() > 0


def changed_at_the_second_step(model, change):
    """The samples where `change(conditioning, model)` is called after the first step."""
    cond = {"c_crossattn": [text(1)]}
    options = {"conditioning": cond, "unconditional_conditioning": {"c_crossattn": [text(2)]}}
    return options | {"callback": lambda i: change(cond, model) if i == 0 else None}


def in_place(cond, model):
    cond["c_crossattn"][0].mul_(-1)


def by_another(cond, model):
    cond["c_crossattn"][0] = text(7)


def by_more(cond, model):
    cond["c_crossattn"] = [text(7), text(8)]


def the_weights(cond, model):
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, CrossAttention):
                layer.to_k.weight.mul_(-2)


def other_weights(cond, model):
    for layer in model.modules():
        if isinstance(layer, CrossAttention):
            old, new = layer.to_v.weight, nn.Parameter(-layer.to_v.weight.detach(), False)
            while new._version < old._version:
                new.mul_(1)
            layer.to_v.weight = new


@pytest.mark.parametrize("change", [in_place, by_another, by_more, the_weights, other_weights])
def test_what_changes_within_a_run_counts_from_the_next_step_on(change):
    one, two = text_model(), text_model()
    found, expected = (f(m, **changed_at_the_second_step(m, change)) for f, m in ((sampled, one), (apart, two)))
    close(found, expected)
    assert (found - sampled(text_model())).abs().max() > 1e-3


@pytest.mark.parametrize("begins", [False, True])
def test_autocast_that_begins_or_ends_within_a_run_goes_on(begins):
    model = text_model().float()
    given = {"unconditional_conditioning": text(2).float(), "unconditional_guidance_scale": 3.0, "x_T": X_T.float()}
    steps = DDIMSampler(model).steps(3, 2, SHAPE, text(1).float(), **given)
    with torch.autocast("cpu", torch.bfloat16, enabled=not begins):
        next(steps)
    with torch.autocast("cpu", torch.bfloat16, enabled=begins):
        found = list(steps)[-1].x_prev
    torch.testing.assert_close(found, sampled(model, conditioning=text(1).float(), **given), rtol=0, atol=0.05)


def test_two_runs_by_turns_do_not_mix():
    model = text_model()
    given = {"unconditional_guidance_scale": 3.0, "x_T": X_T}
    runs = [
        DDIMSampler(model).steps(3, 2, SHAPE, text(seed), unconditional_conditioning=text(seed + 1), **given)
        for seed in (1, 5)
    ]
    last = list(zip(*runs))[-1]
    for step, seed in zip(last, (1, 5)):
        expected = apart(model, conditioning=text(seed), unconditional_conditioning=text(seed + 1))
        close(step.x_prev, expected)


def test_what_was_kept_goes_with_the_run(monkeypatch):
    model, kept = text_model(), []
    share = model.share_latents

    def spy(conds):
        shared = share(conds)
        kept.append(weakref.ref(shared["c_crossattn"][0]))
        return shared

    monkeypatch.setattr(model, "share_latents", spy, raising=False)
    gc.collect()
    gc.disable()
    try:
        out = sampled(model)
        steps = DDIMSampler(model).steps(3, 2, SHAPE, text(1), x_T=X_T)
        first_step = next(steps)
        assert kept[1]() is not None and kept[1]().kept
        steps.close()
        del steps
        assert len(kept) == 2 and [ref() for ref in kept] == [None, None]
        assert out.shape == first_step.x0.shape
    finally:
        gc.enable()


def test_a_copy_of_a_model_that_has_sampled_samples_alike():
    model = text_model()
    expected = sampled(model)
    assert torch.equal(sampled(copy.deepcopy(model)), expected)
