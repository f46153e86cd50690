"""A model that somebody patched, hooked or wrapped sees all of a guided batch, as in CompVis."""

import pytest
import torch
from _text_model import apart, close, counted, sampled, text, text_model
from torch import nn

from ldm.models.diffusion.base import DDPM
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.attention import BasicTransformerBlock, CrossAttention
from ldm.modules.diffusionmodules.blocks import ResBlock
from ldm.modules.feature_reuse import reuse_features
from ldm.modules.token_merging import merge_tokens


def theirs(method):
    """The same, from a file that is not ours."""

    def method_of_theirs(self, *args, **kwargs):
        return method(self, *args, **kwargs)

    return method_of_theirs


class Lora(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) * 1.5


class Alike(CrossAttention):
    """A subclass without a forward of its own."""

    def other(self):
        return None


def first(model, kind):
    return next(layer for layer in model.modules() if isinstance(layer, kind))


def on_the_class(model, patch):
    patch.setattr(CrossAttention, "forward", theirs(CrossAttention.forward))


def on_one_layer(model, patch):
    layer = first(model, CrossAttention)
    layer.forward = theirs(CrossAttention.forward).__get__(layer)


def in_an_ldm_of_their_own(model, patch):
    function = theirs(CrossAttention.forward)
    function.__module__ = "ldm.modules.attention"
    patch.setattr(CrossAttention, "forward", function)


def inside_a_block(model, patch):
    patch.setattr(BasicTransformerBlock, "_forward", theirs(BasicTransformerBlock._forward))


def inside_one_block(model, patch):
    block = first(model, BasicTransformerBlock)
    block._forward = theirs(BasicTransformerBlock._forward).__get__(block)


def inside_the_residual_blocks(model, patch):
    patch.setattr(ResBlock, "_forward", theirs(ResBlock._forward))


def torchs_own_layer(model, patch):
    patch.setattr(nn.Linear, "forward", theirs(nn.Linear.forward))


def by_another_class(model, patch):
    first(model, CrossAttention).__class__ = Alike


def by_a_hook(model, patch):
    first(model, CrossAttention).register_forward_hook(lambda *_: None)


def by_a_hook_before(model, patch):
    first(model, ResBlock).register_forward_pre_hook(lambda *_: None)


def by_a_hook_on_all(model, patch):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    patch.setattr(handle, "done", True, raising=False)
    model.handle = handle


def by_a_hook_on_the_wrapper(model, patch):
    model.model.register_forward_hook(lambda *_: None)


def on_the_wrapper(model, patch):
    patch.setattr(DiffusionWrapper, "forward", theirs(DiffusionWrapper.forward))


def with_lora(model, patch):
    layer = first(model, CrossAttention)
    layer.to_k = Lora(layer.to_k)


def parametrised(model, patch):
    nn.utils.parametrize.register_parametrization(first(model, CrossAttention).to_k, "weight", Lora(nn.Identity()))


def of_the_model(model, patch):
    patch.setattr(DDPM, "apply_model", theirs(DDPM.apply_model))


def on_the_model(model, patch):
    model.apply_model = theirs(DDPM.apply_model).__get__(model)


def by_a_class_of_the_model(model, patch):
    class Theirs(DDPM):
        def apply_model(self, x, t, c):
            return super().apply_model(x, t, c)

    model.__class__ = Theirs


def where_dropout_draws(model, patch):
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.3
    model.train()


PATCHES = [
    on_the_class, on_one_layer, in_an_ldm_of_their_own, inside_a_block, inside_one_block, inside_the_residual_blocks,
    torchs_own_layer, by_another_class, by_a_hook, by_a_hook_before, by_a_hook_on_all, by_a_hook_on_the_wrapper,
    on_the_wrapper, with_lora, parametrised, of_the_model, on_the_model, by_a_class_of_the_model, where_dropout_draws,
]  # fmt: skip


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_a_model_that_was_patched_sees_all_of_a_guided_batch(patch, monkeypatch):
    model = text_model()
    try:
        patch(model, monkeypatch)
        torch.manual_seed(0)
        expected = apart(model)
        batches = counted(model, monkeypatch)
        torch.manual_seed(0)
        assert torch.equal(sampled(model), expected)
        assert batches == [4] * 3
    finally:
        if hasattr(model, "handle"):
            model.handle.remove()


def test_a_compiled_network_is_still_plain(monkeypatch):
    model = text_model()
    model.model.diffusion_model.compile(backend="eager")
    assert model.share_latents([text(1), text(2)]) is not None


@pytest.mark.parametrize("inside", [lambda model: merge_tokens(model, 0.5), lambda model: reuse_features(model, 2)])
def test_approximations_of_ours_share_as_well(inside):
    model = text_model(attention_resolutions=[1])
    with inside(model):
        assert model.share_latents([text(1), text(2)]) is not None


def test_a_wrapper_that_forwards_the_rest_gets_its_own_apply_model_called_with_all():
    class Around:
        def __init__(self, model):
            self.inner, self.batches = model, []

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def apply_model(self, x, t, c):
            self.batches.append((len(x), len(c)))
            return self.inner.apply_model(x, t, c)

    around = Around(text_model())
    close(sampled(around), apart(around.inner))
    assert around.batches == [(4, 4)] * 3
