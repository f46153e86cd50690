"""Feature reuse: exact where it should be, by hand where it is not, and never a picture of another run."""

import copy

import pytest
import torch
from _approximated import CONTEXT, SHAPE, X, ask, sample, small_model, small_network
from _networks import randn

from ldm.models.diffusion.sharing import is_plain
from ldm.modules.feature_reuse import FeatureReuse, reuse_features
from ldm.sampling import DDIMSampler, PLMSSampler


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def network():
    return small_network(num_res_blocks=2)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def calls(monkeypatch):
    """For each time that the deep blocks run, the batch that enters and that of the contexts."""
    calls, call = [], FeatureReuse.__call__

    class Watched:
        """The network as reuse sees it: watched itself, it would not be shared any more."""

        def __init__(self, network):
            self.network = network

        def blocks(self, h, emb, context, begin=0, end=None, inside=None):
            if inside is None:
                calls.append((len(h), len(context)))
            return self.network.blocks(h, emb, context, begin, end, inside)

    monkeypatch.setattr(FeatureReuse, "__call__", lambda self, network, *told: call(self, Watched(network), *told))
    return calls


def by_hand(network, shallow, full_at, t, x=X):
    """What a cached step must return: the shallow blocks at `t`, and the deep ones' feature of `full_at`."""

    def embedded(t):
        return network._embed(torch.full((len(x),), t))

    count = len(network.input_blocks)
    h, skips = x, []
    for block in network.input_blocks:
        h = block(h, embedded(full_at), CONTEXT)
        skips.append(h)
    h = network.middle_block(h, embedded(full_at), CONTEXT)
    for block in network.output_blocks[: count - shallow]:
        h = block(torch.cat([h, skips.pop()], 1), embedded(full_at), CONTEXT)
    top, skips = x, []
    for block in network.input_blocks[:shallow]:
        top = block(top, embedded(t), CONTEXT)
        skips.append(top)
    for block in network.output_blocks[count - shallow :]:
        h = block(torch.cat([h, skips.pop()], 1), embedded(t), CONTEXT)
    return network.out(h)


@pytest.mark.parametrize("shallow", [1, 2, 3, 6])
def test_a_step_between_runs_the_outer_blocks_on_the_deep_feature_of_the_last_full_one(network, shallow):
    with reuse_features(network, 2, shallow):
        first, second, third = (ask(network, t) for t in (90, 80, 70))
    assert torch.equal(first, ask(network, 90)) and torch.equal(third, ask(network, 70))
    assert torch.equal(second, by_hand(network, shallow, 90, 80)) and not torch.equal(second, ask(network, 80))


def test_where_the_deep_feature_never_changes_its_reuse_is_exact(network):
    constant = copy.deepcopy(network)
    last = constant.output_blocks[-2][0]  # nothing of what enters it leaves it
    for layer in (last.out_layers[-1], last.skip_connection):
        layer.weight.zero_()
    constant.output_blocks[-2][1].proj_out.weight.zero_()
    exact = [ask(constant, t, x=X * t) for t in (90, 80, 70)]
    with reuse_features(constant, 3):
        assert all(map(torch.equal, exact, [ask(constant, t, x=X * t) for t in (90, 80, 70)]))


def test_every_step_in_full_is_bit_for_bit_no_reuse(model):
    exact = sample(model)
    with reuse_features(model, 1):
        assert torch.equal(sample(model), exact)
    with reuse_features(model, 2):
        assert not torch.equal(sample(model), exact)
    assert torch.equal(sample(model), exact) and model.model.diffusion_model.reuse is None


@pytest.mark.parametrize("every, full", [(2, 3), (3, 2), (5, 2), (6, 1), (100, 1)])
def test_the_network_runs_in_full_at_every_nth_step_and_is_still_shared_by_the_conditionings(model, calls, every, full):
    with reuse_features(model, every):
        assert is_plain(model.model.diffusion_model)
        sample(model)
    assert calls == [(2, 4)] * full


def test_guidance_in_turns_reuses_what_each_conditioning_had(model):
    with reuse_features(model, 3):
        together = sample(model)
        torch.testing.assert_close(sample(model, batch_guidance=False), together, atol=1e-5, rtol=1e-5)


def test_pictures_alone_are_those_of_the_batch(model):
    cond = randn(2, 5, 16, seed=3)
    with reuse_features(model, 2):
        both = DDIMSampler(model).sample(4, 2, SHAPE, cond, x_T=X, progress=False)[0]
        alone = [DDIMSampler(model).sample(4, 1, SHAPE, cond[i : i + 1], x_T=X[i : i + 1], progress=False)[0]
                 for i in range(2)]  # fmt: skip
    torch.testing.assert_close(torch.cat(alone), both, atol=1e-5, rtol=1e-5)


def test_no_run_sees_another(model):
    """Not even one that was left in the middle, and whose next timestep is the new one's first."""
    cond = randn(2, 5, 16, seed=3)

    def partly(x, start):
        sampler = DDIMSampler(model)
        sampler.make_schedule(10, verbose=False)
        return sampler.decode(x, cond, start)

    runs = ((X, 9), (2 * X, 4), (3 * X, 9))
    alone = []
    for x, start in runs:
        with reuse_features(model, 3):
            alone.append(partly(x, start))
    with reuse_features(model, 3):
        for _ in zip(range(5), DDIMSampler(model).steps(10, 2, SHAPE, cond, x_T=X), strict=False):
            pass
        again = [partly(*runs[i]) for i in (1, 0, 2)]
    assert all(map(torch.equal, again, (alone[1], alone[0], alone[2])))


@pytest.mark.parametrize("change", ["up", "begin", "context", "size", "batch", "stale"])
def test_a_call_that_is_not_the_runs_next_step_runs_in_full(network, calls, change):
    context, x, t = CONTEXT, X, 80
    with reuse_features(network, 2) as reuse:
        ask(network, 90)
        if change == "up":
            t = 95
        if change == "begin":
            reuse.begin()
        if change == "context":
            context = CONTEXT + 1
        if change == "size":
            x = randn(2, 4, 4, 8)
        if change == "batch":
            x, context = X[:1], CONTEXT[:1]
        if change == "stale":
            ask(network, 85, context=2 * CONTEXT), ask(network, 82, context=2 * CONTEXT)
        calls.clear()
        output = ask(network, t, x, context)
    assert len(calls) == 1 and torch.equal(output, ask(network, t, x, context))


def test_an_inversion_reuses_nothing_and_leaves_nothing_to_what_follows(network, calls):
    with reuse_features(network, 5):
        for t in (10, 20, 30):
            ask(network, t)
        ask(network, 30), ask(network, 20)
        assert len(calls) == 5
        ask(network, 10)
    assert len(calls) == 5


def test_a_context_that_was_changed_in_place_is_another(network, calls):
    context = CONTEXT.clone()
    with reuse_features(network, 2):
        ask(network, 90, context=context)
        ask(network, 80, context=context.add_(1))
    assert len(calls) == 2


def test_the_second_call_of_a_step_does_not_reuse_the_first(network, calls):
    with reuse_features(network, 5):
        ask(network, 90), ask(network, 90, x=2 * X)
        assert len(calls) == 2
        first, second = ask(network, 80), ask(network, 80, x=2 * X)
    assert len(calls) == 2 and torch.equal(first, by_hand(network, 1, 90, 80))
    assert torch.equal(second, by_hand(network, 1, 90, 80, x=2 * X))


def test_plms_has_two_calls_at_one_timestep(model, calls):
    with reuse_features(model, 3):
        sample(model, PLMSSampler, steps=7)
    assert len(calls) == 4  # steps 0, 3, 6, and the second call at step 1


def test_where_a_guidance_interval_ends_there_is_a_full_step(model, calls):
    with reuse_features(model, 10):
        sample(model, guidance_interval=(50, 100))
    assert calls == [(2, 4), (2, 2)]


def test_gradients_are_the_networks_own(network):
    def gradient():
        x = X.clone().requires_grad_()
        return torch.autograd.grad(ask(network, 80, x).sum(), x)[0]

    with torch.enable_grad():
        exact = gradient()
    with reuse_features(network, 2):
        ask(network, 90)
        with torch.enable_grad():
            assert torch.equal(gradient(), exact)


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_an_n_that_is_no_number_of_steps_is_refused(network, every):
    with pytest.raises(ValueError, match=f"every={every}"), reuse_features(network, every):
        pass


@pytest.mark.parametrize("shallow", [0, 7])
def test_a_depth_that_the_network_does_not_have_is_refused(network, shallow):
    with pytest.raises(ValueError, match=f"shallow={shallow}.*from 1 to 6"), reuse_features(network, 2, shallow):
        pass


def test_a_network_that_would_not_reuse_is_refused(network):
    with pytest.raises(ValueError, match="Linear has 0 U-Nets"), reuse_features(torch.nn.Linear(1, 1), 2):
        pass
    other = copy.deepcopy(network)
    other.forward = lambda *_: None
    with pytest.raises(ValueError, match="forward is ldm's"), reuse_features(other, 2):
        pass
    other = copy.deepcopy(network)
    other.compile()
    with pytest.raises(ValueError, match="compiled"), reuse_features(other, 2):
        pass
