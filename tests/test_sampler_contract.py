"""What the sampler promises beside numbers: buffers, callbacks, steps, and what it asks of a model."""

import copy

import numpy as np
import pytest
import torch
from _mixture import MixtureModel, levels, randn, reference_ddim, two_modes
from torch import nn

from ldm.sampling import DDIMSampler

SHAPE = (1, 2, 2)
BUFFERS = """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod ddim_sigmas ddim_alphas
    ddim_alphas_prev ddim_sqrt_one_minus_alphas ddim_sigmas_for_original_num_steps""".split()


def make(dtype=torch.float32):
    return DDIMSampler(MixtureModel(two_modes(dtype)))


# the schedule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_schedule_is_float32_buffers_on_the_models_device(dtype):
    sampler = make(dtype)
    sampler.make_schedule(50, ddim_eta=0.5, verbose=False)
    buffers = dict(sampler.named_buffers())
    for name in BUFFERS:
        assert buffers[name] is getattr(sampler, name)
        assert buffers[name].dtype == torch.float32 and buffers[name].device == sampler.model.device, name


def test_the_buffers_hold_compvis_values():
    sampler = make(torch.float64)
    sampler.make_schedule(50, ddim_eta=0.5, verbose=False)
    a, betas, t = sampler.model.alpha_bar, sampler.model.betas.numpy(), np.arange(1, 1000, 20)
    prev, now, to = np.append(1.0, a[:-1]), a[t], np.append(a[0], a[t[:-1]])
    expected = {
        "betas": betas,
        "alphas_cumprod": a,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": a**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - a) ** 0.5,
        "log_one_minus_alphas_cumprod": np.log(1 - a),
        "sqrt_recip_alphas_cumprod": (1 / a) ** 0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / a - 1) ** 0.5,
        "ddim_alphas": now,
        "ddim_alphas_prev": to,
        "ddim_sqrt_one_minus_alphas": (1 - now) ** 0.5,
        "ddim_sigmas": 0.5 * ((1 - to) / (1 - now) * (1 - now / to)) ** 0.5,
        "ddim_sigmas_for_original_num_steps": 0.5 * ((1 - prev) / (1 - a) * (1 - a / prev)) ** 0.5,
    }
    assert set(expected) == set(BUFFERS)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(sampler, name).numpy(), value, rtol=2e-6, atol=1e-6, err_msg=name)
    assert np.asarray(sampler.ddim_timesteps).tolist() == t.tolist()
    assert (sampler.ddpm_num_timesteps, sampler.schedule) == (1000, "linear")


@pytest.mark.parametrize("s", [1, 3, 7, 333, 999, 1000])
def test_any_number_of_steps_is_taken_exactly(s):
    sampler = make()
    sampler.sample(s, 1, SHAPE, x_T=randn(1, *SHAPE, dtype=torch.float32), progress=False)
    ran = [t for (t,) in sampler.model.times]
    assert len(ran) == s and ran == sorted(set(ran), reverse=True) and 0 <= ran[-1] <= ran[0] < 1000


def test_register_buffer_adds_a_float32_buffer_as_compvis_does():
    sampler = make()
    sampler.register_buffer("mine", torch.arange(3.0))
    assert torch.equal(sampler.mine, torch.arange(3.0)) and not sampler.state_dict()


# the sampler and the model


def host():
    model = MixtureModel(two_modes(torch.float32))
    model.net = nn.Linear(2, 2)
    return model


def test_a_model_may_keep_its_sampler():
    model = host()
    before = list(model.state_dict()), len(list(model.parameters()))
    model.sampler = DDIMSampler(model)
    model.sampler.make_schedule(10, verbose=False)
    assert (list(model.state_dict()), len(list(model.parameters()))) == before
    assert model.sampler.model is model
    assert not model.sampler.state_dict() and not list(model.sampler.parameters())
    for walk in (repr, lambda m: list(m.modules()), nn.Module.train, nn.Module.eval, copy.deepcopy):
        walk(model)
    model.load_state_dict(model.state_dict())


def test_changing_the_models_precision_leaves_the_schedule_alone():
    model = host()
    model.sampler = DDIMSampler(model)
    model.sampler.make_schedule(10, verbose=False)
    before = {name: getattr(model.sampler, name).clone() for name in BUFFERS}
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.double):
        change(model)
        for name in BUFFERS:
            now = getattr(model.sampler, name)
            assert now.dtype == torch.float32 and torch.equal(now, before[name]), (change, name)
        assert torch.equal(dict(model.sampler.named_buffers())["ddim_alphas"], before["ddim_alphas"])


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_latents_stay_float32_when_the_network_answers_in_half_precision(kind):
    class Half(MixtureModel):
        def apply_model(self, x, t, c):
            return super().apply_model(x, t, c).half()

    x_T, mix = randn(2, *SHAPE, dtype=torch.float32), two_modes(torch.float32)
    half, inter = DDIMSampler(Half(mix, kind)).sample(20, 2, SHAPE, x_T=x_T, progress=False)
    full, _ = DDIMSampler(MixtureModel(mix, kind)).sample(20, 2, SHAPE, x_T=x_T, progress=False)
    assert {x.dtype for x in [half, *inter["x_inter"], *inter["pred_x0"]]} == {torch.float32}
    torch.testing.assert_close(half, full, rtol=0, atol=2e-2)


def test_any_object_with_the_five_names_is_a_model():
    class Plain:
        def __init__(self):
            inner = MixtureModel(two_modes(torch.float32))
            self.num_timesteps, self.betas, self.apply_model = 1000, inner.betas, inner.apply_model
            self.alphas_cumprod, self.alphas_cumprod_prev = inner.alphas_cumprod, inner.alphas_cumprod_prev

    x_T = randn(2, *SHAPE, dtype=torch.float32)
    options = {"x_T": x_T, "progress": False}
    assert torch.equal(DDIMSampler(Plain()).sample(6, 2, SHAPE, **options)[0], make().sample(6, 2, SHAPE, **options)[0])


def test_compvis_positions_mean_what_they_meant():
    cond, x_T, seen = randn(2, 3), randn(2, *SHAPE), []
    by_place = make(torch.float64).sample(6, 2, SHAPE, cond, seen.append, None, None, False, 0.0, None, None, 1.0, 0.0,
                                          None, None, False, x_T, 100, 2.0, cond * 0)  # fmt: skip
    by_name = make(torch.float64).sample(
        S=6, batch_size=2, shape=SHAPE, conditioning=cond, x_T=x_T, unconditional_guidance_scale=2.0,
        unconditional_conditioning=cond * 0, verbose=False,
    )  # fmt: skip
    assert torch.equal(by_place[0], by_name[0]) and seen == list(range(6))


# what a caller sees on the way


def test_callbacks_hear_of_every_step_in_order():
    heard, x_T = [], randn(2, *SHAPE)
    out, inter = make(torch.float64).sample(
        6, 2, SHAPE, x_T=x_T, log_every_t=1, progress=False,
        callback=lambda i: heard.append(("step", i)), img_callback=lambda x0, i: heard.append((x0, i)),
    )  # fmt: skip
    assert [i for _, i in heard] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [what for what, _ in heard[::2]] == ["step"] * 6
    for (x0, _), logged in zip(heard[1::2], inter["pred_x0"][1:]):
        assert torch.equal(x0, logged)


@pytest.mark.parametrize("every, logged", [(1, 10), (5, 3), (100, 2)])
def test_intermediates_are_the_start_the_first_step_and_every_index_divisible(every, logged):
    x_T = randn(2, *SHAPE)
    out, inter = make(torch.float64).sample(10, 2, SHAPE, x_T=x_T, log_every_t=every, progress=False)
    assert len(inter["x_inter"]) == len(inter["pred_x0"]) == 1 + logged
    assert torch.equal(inter["x_inter"][0], x_T) and torch.equal(inter["x_inter"][-1], out)


def test_draining_the_steps_is_sampling():
    x_T, sampler = randn(2, *SHAPE), make(torch.float64)
    options = {"x_T": x_T, "eta": 1.0, "seeds": [1, 2]}
    out, inter = sampler.sample(10, 2, SHAPE, log_every_t=1, progress=False, **options)
    steps = list(sampler.steps(10, 2, SHAPE, **options))
    assert len(steps) == 10
    assert [s.timestep for s in steps] == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert [s.index for s in steps] in (list(range(10)), list(range(9, -1, -1)))
    for step, x0 in zip(steps, inter["pred_x0"][1:]):
        assert torch.equal(step.x0, x0)
    assert torch.equal(steps[0].x_t, x_T) and torch.equal(steps[-1].x_prev, out)
    for before, after in zip(steps, steps[1:]):
        assert torch.equal(before.x_prev, after.x_t)


def test_leaving_the_steps_early_stops_the_model_and_leaves_no_mode_behind():
    sampler = make()
    for step in sampler.steps(10, 2, SHAPE, seeds=[1, 2]):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not step.x_t.requires_grad
        if len(sampler.model.times) == 3:
            break
    assert len(sampler.model.times) == 3 and torch.is_grad_enabled()
    sampler.sample(10, 2, SHAPE, seeds=[1, 2], progress=False)
    assert torch.is_grad_enabled() and len(sampler.model.times) == 13


def test_samples_may_be_trained_on_afterwards():
    """Tensors made in inference mode could not: autograd refuses to save them."""
    out, _ = make().sample(4, 2, SHAPE, seeds=[1, 2], progress=False)
    weight = torch.ones((), requires_grad=True)
    (out * weight).square().sum().backward()
    assert weight.grad > 0 and not out.requires_grad


def test_one_step_by_hand_is_one_step_of_equation_12():
    sampler = make(torch.float64)
    sampler.make_schedule(10, ddim_eta=0.0, verbose=False)
    x, mix, a = randn(2, *SHAPE), sampler.model.mixture, levels(sampler, sampler.model.alpha_bar[0])
    for index in (9, 4, 0):
        t = torch.full((2,), int(sampler.ddim_timesteps[index]))
        x_prev, x0 = sampler.p_sample_ddim(x, None, t, index)
        i = 9 - index
        torch.testing.assert_close(x_prev, reference_ddim(mix.eps, x, a[i : i + 2]), rtol=0, atol=1e-6)
        torch.testing.assert_close(x0, mix.x0(x, a[i]), rtol=0, atol=1e-5)


def test_repeat_noise_gives_the_batch_one_noise():
    sampler = make(torch.float64)
    sampler.make_schedule(10, ddim_eta=1.0, verbose=False)
    x, t = randn(1, *SHAPE).expand(3, *SHAPE), torch.full((3,), int(sampler.ddim_timesteps[5]))
    same, _ = sampler.p_sample_ddim(x, None, t, 5, repeat_noise=True)
    own, _ = sampler.p_sample_ddim(x, None, t, 5)
    torch.testing.assert_close(same[0], same[2], rtol=0, atol=1e-12)
    assert not torch.isclose(own[0], own[2]).all()


@pytest.mark.parametrize("progress", [False, True])
def test_nothing_is_printed_and_progress_goes_to_stderr(capsys, progress):
    make().sample(4, 1, SHAPE, seeds=[1], progress=progress, verbose=True)
    said = capsys.readouterr()
    assert said.out == "" and bool(said.err) == progress
