"""All that one does with a network still works where its weights are packed."""

import copy
import io
import pickle

import pytest
import torch
from _networks import randn
from _packed import packed, says, used
from _text_model import X_T, sampled, text, text_model
from test_networks import context_unet, inputs
from torch import nn

from ldm.modules import inference
from ldm.modules.attention import CrossAttention
from ldm.modules.ema import LitEma
from ldm.modules.inference import PackedConv2d, PackedLinear, prepare_for_inference

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture(autouse=True)
def all_linear_layers(monkeypatch):
    """Also those of small networks, for which it does not pay."""
    monkeypatch.setattr(inference, "_gains", lambda layer: True)


def test_the_state_dict_is_the_same_in_order_and_to_the_bit():
    network, expected = used()
    for _ in range(2):
        found, before = network.state_dict(), context_unet().state_dict()
        assert list(found) == list(before) and all(torch.equal(found[k], before[k]) for k in before)
        assert [n for n, _ in network.named_parameters()] == [n for n, _ in context_unet().named_parameters()]
        says(network, expected)
    assert packed(network) > 40 and found["out.2.weight"].any()  # what was taken out stays


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_are_loaded_later_count(assign):
    network, _ = used()
    other = context_unet()
    for p in other.parameters():
        p.mul_(1.01)
    network.load_state_dict({k: v.clone() for k, v in other.state_dict().items()}, assign=assign)
    if assign:
        network.requires_grad_(False)
    says(network, other(*inputs()))
    assert packed(network) > 40


def test_weights_that_are_changed_where_they_are_count():
    """As those do who merge a LoRA, or write into a state dict."""
    network, _ = used()
    other = context_unet()
    for net in (network, other):
        with torch.no_grad():
            net.input_blocks[1][0].in_layers[2]._parameters["weight"] = nn.Parameter(randn(32, 32, 3, 3) / 20, False)
            net.middle_block[1].transformer_blocks[0].attn2.to_k.weight.data += 0.5
            net.state_dict()["input_blocks.0.0.weight"].mul_(-1)
            for p in net.out.parameters():
                p.mul_(2)
    says(network, other(*inputs()), atol=1e-4)


def test_weights_that_are_changed_within_a_run_count_in_inference_mode_too():
    given = {"x_T": X_T.float(), "conditioning": text(1).float(), "unconditional_conditioning": text(2).float()}
    samples = []
    for model in (prepare_for_inference(text_model().float()), text_model().float()):

        def callback(i, model=model):
            for layer in model.modules() if i == 0 else ():
                if isinstance(layer, CrossAttention):
                    layer.to_k.weight.mul_(-2)

        with torch.inference_mode():
            samples.append(sampled(model, callback=callback, **given))
            assert len(list(model.parameters())) > 40
        assert not any(p.is_inference() for p in model.parameters())  # autograd would refuse such for good
    torch.testing.assert_close(*samples, rtol=0, atol=1e-4)


def test_averaged_weights_are_swapped_in_and_out():
    model = text_model().float()
    model.model.requires_grad_(True)
    model.model_ema = LitEma(model.model)
    with torch.no_grad():
        for p in model.model.parameters():
            p.mul_(1.02)
    args = (randn(2, 4, 8, 8), torch.tensor([5, 70]), randn(2, 5, 12, seed=3))
    expected = copy.deepcopy(model)
    prepare_for_inference(model)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model.apply_model(*args), expected.apply_model(*args), rtol=0, atol=1e-5)
            with model.ema_scope(), expected.ema_scope():
                averaged = model.apply_model(*args)
                torch.testing.assert_close(averaged, expected.apply_model(*args), rtol=0, atol=1e-5)
            assert (averaged - model.apply_model(*args)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_packed_network_can_be_converted_and_back(dtype):
    network, expected = used()
    says(network.to(dtype), context_unet().to(dtype)(*inputs()).float(), atol=0.12 if dtype == torch.bfloat16 else 1e-5)
    says(network.float(), expected, atol=0.12 if dtype == torch.bfloat16 else 1e-5)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_what_a_layer_does_not_take_it_refuses_as_ever():
    network, _ = used()
    said = []
    for net in (network, context_unet()):
        with torch.no_grad(), pytest.raises(RuntimeError) as error:
            net.input_blocks[0][0](randn(2, 4, 8, 8, dtype=torch.float64))
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("copied", [
    copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)),
    lambda net: torch.load(written(net), weights_only=False),
], ids=["deepcopy", "pickle", "file"])  # fmt: skip
def test_a_packed_network_can_be_copied(copied):
    network, expected = used()
    other = copied(network)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    says(other, expected)
    assert packed(other) > 40 and not network(*inputs()).any()


def written(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return file


def test_layers_stay_the_objects_they_were_with_their_hooks_and_attributes():
    network = context_unet()
    layer, attention, calls = network.input_blocks[0][0], network.middle_block[1].transformer_blocks[0].attn2, []
    weight, to_k = layer.weight, attention.to_k
    layer.register_forward_hook(lambda module, args, out: calls.append(out))
    network, expected = used(network)
    assert network.input_blocks[0][0] is layer and isinstance(layer, nn.Conv2d) and layer.in_channels == 4
    assert attention.to_k is to_k and isinstance(to_k, nn.Linear) and to_k.in_features == 12
    assert calls and layer.weight is weight and weight.shape == (32, 4, 3, 3)


def test_layers_of_somebody_elses_are_left_alone(monkeypatch):
    class Theirs(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    network, forward = context_unet(), nn.Linear.forward
    network.input_blocks[0][0].__class__ = Theirs
    calls = []
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: calls.append(x) or forward(self, x))
    expected, per_call = network(*inputs()), len(calls)
    says(prepare_for_inference(network), expected)
    assert len(calls) == 2 * per_call > 20 and type(network.input_blocks[0][0]) is Theirs


def test_preparing_twice_is_preparing_once():
    network, expected = used()
    kinds = [type(layer) for layer in network.modules()]
    assert prepare_for_inference(prepare_for_inference(network)) is network
    assert [type(layer) for layer in network.modules()] == kinds
    says(network, expected)
    assert packed(network) > 40


def test_a_prepared_network_gives_gradients_to_its_input_and_learns_again_once_it_is_not_frozen():
    network, _ = used()
    x, t, context = inputs()
    grads = []
    for net in (network, context_unet()):
        x = x.detach().requires_grad_()
        net(x, t, context).square().mean().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)
    network.requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    losses = []
    for _ in range(3):
        with torch.no_grad():
            network(x, t, context)
        assert packed(network) == 0
        optimizer.zero_grad()
        loss = network(x, t, context).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    assert all(p.grad is not None for p in network.parameters() if p.ndim > 1)


def test_weights_that_are_packed_are_let_go():
    network, weights = context_unet(), []
    assert packed(prepare_for_inference(network, release=lambda weight: weights.append(tuple(weight.shape)))) == 0
    with torch.no_grad():
        network(*inputs())
    assert len(weights) == packed(network)
    held = sum(
        dict.get(layer.__dict__["_parameters"], "weight").untyped_storage().nbytes()
        for layer in network.modules()
        if isinstance(layer, (PackedConv2d, PackedLinear))
    )
    assert held == 0 and (32, 4, 3, 3) in weights


def test_a_prepared_model_still_shares_between_its_conditionings():
    model = prepare_for_inference(text_model())
    assert model.share_latents([randn(2, 5, 12), randn(2, 5, 12, seed=1)]) is not None
