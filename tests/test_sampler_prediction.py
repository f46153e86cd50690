"""What the network says, and what becomes of it: predictions, limits, corrections, the codebook."""

import math

import numpy as np
import pytest
import torch
from _small_model import SHAPE, X_T, Model, run
from torch import nn

from ldm.sampling import DDIMSampler, NoiseSchedule
from ldm.sampling.prediction import clip_x0, dynamic_threshold, predict
from ldm.sampling.transition import ddim_inverse_step, ddim_sigma, ddim_step


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.999])
def test_a_prediction_lies_on_the_line_through_x_t(kind, alpha_bar):
    x, output = X_T.double(), torch.sin(X_T.double())
    x0, eps = predict(output, x, alpha_bar, kind)
    torch.testing.assert_close(alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps, x)
    said = {"eps": eps, "x0": x0, "v": alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x0}[kind]
    torch.testing.assert_close(said, output)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("alpha_bar, alpha_bar_prev", [(0.01, 0.05), (0.5, 0.6), (0.9, 0.999)])
def test_the_inverse_step_undoes_the_step_if_the_model_says_the_same(kind, alpha_bar, alpha_bar_prev):
    x, output = X_T.double(), torch.sin(X_T.double())
    x_prev = ddim_step(*predict(output, x, alpha_bar, kind), alpha_bar_prev)
    torch.testing.assert_close(ddim_inverse_step(x_prev, output, alpha_bar, alpha_bar_prev, kind), x)


def test_a_v_step_from_zero_signal_can_be_undone_and_an_x0_step_to_none_cannot():
    x, output = X_T.double(), torch.sin(X_T.double())
    x_prev = ddim_step(*predict(output, x, 0.0, "v"), 0.3)
    torch.testing.assert_close(ddim_inverse_step(x_prev, output, 0.0, 0.3, "v"), x)
    with pytest.raises(ValueError, match="cannot be undone"):
        ddim_inverse_step(x, output, 0.5, 1.0, "x0")


def test_sigma_is_the_ddpm_posterior_at_eta_one_and_nothing_where_there_is_no_step():
    beta = 1 - 0.5 / 0.8
    assert ddim_sigma(0.5, 0.8, 1.0) == pytest.approx(math.sqrt((1 - 0.8) / (1 - 0.5) * beta))
    assert ddim_sigma(0.5, 0.8, 0.5) == pytest.approx(ddim_sigma(0.5, 0.8, 1.0) / 2)
    assert ddim_sigma(1.0, 1.0, 1.0) == 0 and ddim_sigma(0.5, 0.5, 1.0) == 0


def test_more_noise_than_the_next_level_holds_is_refused():
    with pytest.raises(ValueError, match="more noise than the next level holds"):
        ddim_step(X_T, X_T, 0.9, sigma=0.5)


def test_clipping_and_thresholding_limit_x0_alone():
    x0 = torch.tensor([[-3.0, 0.5, 1.0, 2.0], [0.1, -0.2, 0.3, 0.4]])
    assert torch.equal(clip_x0(x0, True), x0.clamp(-1, 1)) and torch.equal(clip_x0(x0, 2), x0.clamp(-2, 2))
    out = dynamic_threshold(x0, 0.75)
    s = torch.tensor([[3.0, 2.0, 1.0, 0.5]]).quantile(0.75)
    torch.testing.assert_close(out[0], x0[0].clamp(-s, s) / s)
    assert torch.equal(out[1], x0[1]), "a sample within ±1 is left alone"


def test_limits_reach_every_step():
    sampler = DDIMSampler(Model())
    for options, bound in (({"clip_x0": True}, 1), ({"clip_x0": 0.25}, 0.25), ({"dynamic_threshold": 0.9}, 1)):
        assert all(step.x0.abs().max() <= bound for step in sampler.steps(5, 3, SHAPE, x_T=3 * X_T, **options))
    with pytest.raises(ValueError, match="dynamic_threshold = 0.9 and clip_x0 = True both"):
        run(clip_x0=True, dynamic_threshold=0.9)
    with pytest.raises(ValueError, match="dynamic_threshold = 99.5"):
        run(dynamic_threshold=99.5)


class Corrector:
    def __init__(self):
        self.seen = []

    def modify_score(self, model, e_t, x, t, c):
        self.seen.append(e_t)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(leaf.pow(3).sum(), leaf)
        return e_t - 0.01 * gradient


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_a_score_corrector_sees_eps_and_needs_no_kwargs(kind):
    corrector, sampler = Corrector(), DDIMSampler(Model(kind))
    out = run(sampler=sampler, score_corrector=corrector)
    alpha_bar = sampler.levels().alpha_bar[-1]
    output = sampler.model.apply_model(X_T, torch.full((3,), int(sampler.ddim_timesteps[-1])), None)
    torch.testing.assert_close(corrector.seen[0], predict(output, X_T, alpha_bar, kind)[1])
    assert not out.requires_grad and not torch.equal(out, run(sampler=DDIMSampler(Model(kind))))


def test_a_score_corrector_at_zero_signal_leaves_x0_and_stays_finite():
    sampler = DDIMSampler(Model("v", zero_snr=True), ddim_discretize="trailing")
    assert sampler.model.alphas_cumprod[-1] == 0
    assert torch.isfinite(run(sampler=sampler, score_corrector=Corrector())).all()


@pytest.mark.parametrize("answer", [lambda z: z.round(), lambda z: (z.round(), None, (None, None))])
def test_a_codebook_may_answer_with_a_tensor_or_a_tuple(answer):
    model = Model()
    model.first_stage_model = nn.Module()
    model.first_stage_model.quantize = answer
    last = list(DDIMSampler(model).steps(5, 3, SHAPE, x_T=X_T, quantize_x0=True))[-1]
    assert last.x0.shape == X_T.shape and torch.equal(last.x0, last.x0.round())


def test_a_model_without_a_codebook_is_told_so():
    with pytest.raises(ValueError, match="quantize_x0 needs Model.first_stage_model.quantize"):
        run(quantize_x0=True)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_a_level_without_noise_is_no_trouble(kind):
    model = Model(kind)
    for name, values in NoiseSchedule.from_betas(np.append(0.0, model.betas[1:].numpy())).buffers().items():
        setattr(model, name, torch.tensor(values, dtype=torch.float32))
    sampler = DDIMSampler(model, ddim_discretize="leading")
    out = run(sampler=sampler, eta=1.0, seeds=[1, 2, 3])
    assert sampler.levels().alpha_bar[0] == 1 and torch.isfinite(out).all()
    if kind == "x0":
        with pytest.raises(ValueError, match="cannot be undone: end the schedule below ᾱ = 1"):
            sampler.encode(X_T, None, 5)
    else:
        assert torch.isfinite(sampler.encode(X_T, None, 5)[0]).all()


def test_eps_without_signal_is_told_a_remedy_that_works():
    sampler = DDIMSampler(Model(zero_snr=True))
    with pytest.raises(ValueError, match='fewer steps, with ddim_discretize="leading"'):
        run(100, sampler, ddim_discretize="leading")
    assert torch.isfinite(run(99, sampler, ddim_discretize="leading")).all()
