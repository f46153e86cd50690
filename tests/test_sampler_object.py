"""DDIMSampler as an object: subclasses with CompVis' signatures, copies, buffers."""

import copy
import pickle

import numpy as np
import torch
from _small_model import SHAPE, X_T, Model, run

from ldm.sampling import DDIMSampler

# subclasses with CompVis' signatures


class OldStep(DDIMSampler):
    def p_sample_ddim(
        self, x, c, t, index, repeat_noise=False, use_original_steps=False, quantize_denoised=False, temperature=1.0,
        noise_dropout=0.0, score_corrector=None, corrector_kwargs=None, unconditional_guidance_scale=1.0,
        unconditional_conditioning=None,
    ):  # fmt: skip
        return super().p_sample_ddim(x + 0.1, c, t, index)


class OldSchedule(DDIMSampler):
    def make_schedule(self, ddim_num_steps, ddim_discretize="uniform", ddim_eta=0.0, verbose=True):
        super().make_schedule(ddim_num_steps, "quad", ddim_eta, verbose)


class OldLoop(DDIMSampler):
    def ddim_sampling(
        self, cond, shape, x_T=None, ddim_use_original_steps=False, callback=None, timesteps=None,
        quantize_denoised=False, mask=None, x0=None, img_callback=None, log_every_t=100, temperature=1.0,
        noise_dropout=0.0, score_corrector=None, corrector_kwargs=None, unconditional_guidance_scale=1.0,
        unconditional_conditioning=None,
    ):  # fmt: skip
        return super().ddim_sampling(cond, shape, x_T=x_T + 1)


class OldBuffer(DDIMSampler):
    def register_buffer(self, name, attr):
        setattr(self, name, attr)


def test_overrides_with_compvis_signatures_are_honoured():
    def out(kind, **options):
        return kind(Model()).sample(5, 3, SHAPE, x_T=X_T, verbose=False, **options)[0]

    plain = out(DDIMSampler)
    assert not torch.equal(out(OldStep), plain)
    assert torch.equal(out(OldSchedule), out(DDIMSampler, ddim_discretize="quad"))
    assert torch.equal(out(OldLoop), DDIMSampler(Model()).sample(5, 3, SHAPE, x_T=X_T + 1, verbose=False)[0])
    assert torch.equal(out(OldBuffer), plain)


def test_an_override_goes_for_decode_and_steps_too():
    sampler = OldStep(Model())
    sampled = run(sampler=sampler)
    (*_, last) = sampler.steps(5, 3, SHAPE, x_T=X_T)
    assert torch.equal(last.x_prev, sampled) and torch.equal(sampler.decode(X_T, None, 5), sampled)


# the object


def test_a_copy_and_a_pickle_sample_the_same():
    sampler = DDIMSampler(Model(), clip_x0=2.0)
    sampler.make_schedule(5, verbose=False)
    for twin in (copy.copy(sampler), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert torch.equal(run(sampler=twin), run(sampler=sampler))
        assert not list(twin.modules())[1:], "the model became a sub-module"
    model = Model()
    model.sampler = DDIMSampler(model)
    twin = copy.deepcopy(model)
    assert twin.sampler.model is twin


def test_what_is_registered_may_be_a_tensor_an_array_and_a_tensor_again():
    sampler = DDIMSampler(Model())
    for value in (torch.ones(2), np.ones(2), torch.zeros(3)):
        sampler.register_buffer("mine", value)
        assert sampler.mine.shape == value.shape and type(sampler.mine) is type(value)
    assert not sampler.state_dict()
