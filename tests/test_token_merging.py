"""Token merging: which tokens go where, and exact where nothing is lost."""

import pytest
import torch
from _approximated import CONTEXT, ask, sample, small_model, small_network
from _networks import randn

from ldm.models.diffusion.sharing import is_plain
from ldm.modules.token_merging import TokenMerging, match, merge, merge_tokens, unmerge

SIZE = (6, 8)


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
def test_three_quarters_of_a_map_of_any_size_can_be_merged(size):
    x, seen = randn(2, size[0] * size[1], 5), []
    result = TokenMerging(0.75, size)(lambda tokens: seen.append(tokens.shape[1]) or tokens, x)
    assert seen == [x.shape[1] - int(0.75 * x.shape[1])] and result.shape == x.shape


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
    network, seen = small_network(attention_resolutions=[1, 2]), []
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
    for change in ({"attention_resolutions": [2]}, {"disable_self_attentions": [True, True]}):
        network = small_network(**change)
        with pytest.raises(ValueError, match="no effect"), merge_tokens(network, 0.5):
            pass
