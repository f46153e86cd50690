"""Feature reuse and token merging: exact where they should be, and never a picture of another run."""

import copy

import pytest
import torch
from _networks import golden_weights, randn
from _script_models import unconditional, written
from _txt2img import CONFIG, difference, draw

from ldm.models.diffusion.sharing import is_plain
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.feature_reuse import reuse_features
from ldm.modules.token_merging import TokenMerging, match, merge, merge_tokens, unmerge
from ldm.sampling import DDIMSampler, PLMSSampler
from ldm.util import instantiate_from_config

SHAPE, SIZE = (4, 8, 8), (6, 8)
X, CONTEXT = randn(2, 4, 8, 8), randn(2, 5, 16, seed=1)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def network():
    with torch.no_grad():
        unet = CONFIG["model"]["params"]["unet_config"]["params"]
        return golden_weights(UNetModel(**{**unet, "num_res_blocks": 2}))


@pytest.fixture(scope="module")
def model():
    with torch.no_grad():
        model = instantiate_from_config(copy.deepcopy(CONFIG["model"])).eval()
        golden_weights(model.model)
        return model


def ask(network, t, x=X, context=CONTEXT):
    return network(x, torch.full((len(x),), t), context)


@pytest.fixture
def calls(monkeypatch):
    """For each time that the deep blocks run, the batch that enters and that of the contexts."""
    calls, blocks = [], UNetModel.blocks

    def counted(self, h, emb, context, begin=0, end=None, inside=None):
        if inside is None:
            calls.append((len(h), len(context)))
        return blocks(self, h, emb, context, begin, end, inside)

    monkeypatch.setattr(UNetModel, "blocks", counted)
    return calls


def sample(model, sampler=DDIMSampler, steps=6, **options):
    cond, uncond = randn(2, 5, 16, seed=3), randn(2, 5, 16, seed=4)
    return sampler(model).sample(
        steps, 2, SHAPE, cond, unconditional_conditioning=uncond, unconditional_guidance_scale=3.0, x_T=X, eta=0.0,
        progress=False, **options,
    )[0]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- feature reuse


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


# ------------------------------------------------------------------------------------------------------- token merging


def test_the_nearest_tokens_are_merged_into_what_they_are_nearest_to():
    x = 10 * randn(1, 48, 300, seed=5)  # far from each other
    x[0, 9], x[0, 47] = x[0, 2], 3 * x[0, 0]  # of the same direction as two destinations
    places = match(x, SIZE, 2)[0]
    assert places[9] == places[2] and places[47] == places[0]
    assert sorted(set(places.tolist())) == list(range(46))
    merged = merge(x, places[None], 2)
    torch.testing.assert_close(merged[0, places[0]], 2 * x[0, 0])


@pytest.mark.parametrize("count", [0, 1, 20, 36])
def test_tokens_that_are_equal_come_back(count):
    x = randn(2, 12, 7).repeat_interleave(4, 1)  # each 2×2 block is of one token
    x = x.unflatten(1, (3, 4, 2, 2)).transpose(2, 3).flatten(1, 4)
    places = match(x, SIZE, count)
    assert merge(x, places, count).shape == (2, 48 - count, 7)
    torch.testing.assert_close(unmerge(merge(x, places, count), places), x)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (2, 2), (3, 2)])
def test_any_size_can_be_merged_until_one_of_each_block_remains(size):
    x, seen = randn(2, size[0] * size[1], 5), []
    result = TokenMerging(0.75, size)(lambda tokens: seen.append(tokens.shape[1]) or tokens, x)
    least = len(x[0]) - (len(x[0]) - (size[0] // 2) * (size[1] // 2))
    assert seen == [max(least, len(x[0]) - int(0.75 * len(x[0])))] and result.shape == x.shape


def test_a_map_without_a_2x2_block_is_left_alone():
    x = randn(1, 8, 5)
    assert TokenMerging(0.75, (1, 8))(lambda tokens: tokens, x) is x


def test_merging_a_constant_map_changes_nothing(network):
    block = network.input_blocks[1][1].transformer_blocks[0]
    x = randn(2, 1, 32).expand(2, 48, 32).contiguous()
    exact = block(x, CONTEXT)
    for ratio in (0.3, 0.75):
        with merge_tokens(network, ratio):
            block.merging.size = SIZE
            torch.testing.assert_close(block(x, CONTEXT), exact, atol=1e-5, rtol=1e-5)


def test_a_ratio_of_nothing_is_bit_for_bit_no_merging(model):
    exact = sample(model)
    with merge_tokens(model, 0):
        assert torch.equal(sample(model), exact)
    with merge_tokens(model, 0.5):
        assert is_plain(model.model.diffusion_model)
        assert not torch.equal(sample(model), exact)
    assert torch.equal(sample(model), exact)


def test_only_self_attention_at_the_highest_resolution_sees_fewer(monkeypatch):
    unet = {**CONFIG["model"]["params"]["unet_config"]["params"], "attention_resolutions": [1, 2]}
    network, seen = golden_weights(UNetModel(**unet)), []
    for name, module in network.named_modules():
        if name.endswith(("attn1", "attn2")):
            forward = module.forward
            monkeypatch.setattr(
                module, "forward",
                lambda x, context=None, name=name, forward=forward: seen.append((name[-5:], x.shape[1]))
                or forward(x, context=context),
            )  # fmt: skip
    ask(network, 50)
    whole = sorted(seen)
    seen.clear()
    with merge_tokens(network, 0.5):
        ask(network, 50)
    assert sorted(seen) == sorted(("attn1", 32) if one == ("attn1", 64) else one for one in whole) != whole


@pytest.mark.parametrize("ratio", [-0.1, 0.76, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(network, ratio):
    with pytest.raises(ValueError, match="ratio=.*to 0.75"), merge_tokens(network, ratio):
        pass


def test_merging_where_there_is_nothing_to_merge_is_refused():
    unet = CONFIG["model"]["params"]["unet_config"]["params"]
    for change in ({"attention_resolutions": [2]}, {"disable_self_attentions": [True, True]}):
        network = UNetModel(**{**unet, **change})
        with pytest.raises(ValueError, match="no effect"), merge_tokens(network, 0.5):
            pass


# --------------------------------------------------------------------------------------------------------- the scripts


def test_pictures_tell_what_approximated_them_and_differ(run):
    flags = ("--n_samples", 1, "--n_iter", 1)
    (exact,) = draw(run, *flags, out="exact")
    assert not {"reuse_features", "merge_tokens"} & set(exact[1])
    for name, value in (("reuse_features", 3), ("merge_tokens", 0.75)):
        made = draw(run, *flags, f"--{name}", value, out=name)[0]
        assert {**exact[1], name: value} == made[1]
        assert 0 < difference(made, exact)
    again = draw(run, *flags, "--reuse_features", 3, "--low_mem", out="again")[0]
    assert difference(again, draw(run, *flags, "--reuse_features", 3, out="once")[0]) <= 1


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--reuse_features", 0), "'0': give an integer of at least 1"),
        (("--merge_tokens", 0.8), "'0.8': give a number from 0 to 0.75"),
        (("--reuse_features", 2, "--compile"), "--reuse_features and --compile"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_a_model_is_loaded(run, no_model, flags, said):
    status, _, lines = run("--prompt", "a red circle", *flags)
    assert status != 0 and said in lines[-1]


def test_merging_tokens_of_a_model_without_such_attention_is_one_line(run, tmp_path):
    model = written(tmp_path, unconditional)
    status, _, lines = run("--merge_tokens", 0.5, model=model)
    assert status != 0 and "has no effect" in lines[-1]
