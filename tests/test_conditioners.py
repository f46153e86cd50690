"""The encoders of classes and of maps."""

import pytest
import torch
from _networks import randn

from ldm.modules.encoders.modules import ClassEmbedder, SpatialRescaler
from ldm.util import instantiate_from_config


def test_labels_become_vectors_however_they_are_given():
    encoder = ClassEmbedder(4, n_classes=6, key="class_label")
    expected = encoder.embedding.weight[[5, 0]][:, None]
    for batch in ({"class_label": torch.tensor([5, 0])}, {"class_label": [5, 0]}, torch.tensor([5, 0]), [5, 0]):
        assert encoder.encode(batch).equal(expected)
    assert encoder({"y": [5, 0]}, key="y").equal(expected)
    assert encoder(torch.tensor([5, 0], dtype=torch.int32)).equal(expected)
    assert encoder(5).equal(expected[:1])
    assert list(encoder.state_dict()) == ["embedding.weight"]


@pytest.mark.parametrize(
    "batch, error, message",
    [
        ([0, 6], ValueError, "class 6 is not there; the model knows 0 to 5"),
        ([-1], ValueError, "class -1 is not there"),
        ({"label": [1]}, KeyError, "the batch has no 'class'; it has 'label'"),
        ([0.5], TypeError, "whole numbers"),
        ([[1, 2]], TypeError, r"not torch.int64 of \(1, 2\)"),
    ],
)
def test_labels_that_are_not_there_are_named(batch, error, message):
    with pytest.raises(error, match=message):
        ClassEmbedder(4, n_classes=6)(batch)


def test_a_map_is_scaled_and_then_mapped_to_channels():
    encoder = instantiate_from_config(
        {
            "target": "ldm.modules.encoders.modules.SpatialRescaler",
            "params": {"n_stages": 2, "in_channels": 5, "out_channels": 3},
        }
    )
    x = randn(2, 5, 16, 8)
    # two halvings by interpolation between the two nearest pixels are the mean of four by four
    pooled = torch.nn.functional.avg_pool2d(x, 4)
    expected = torch.einsum("oi, bihw -> bohw", encoder.channel_mapper.weight[:, :, 0, 0], pooled)
    torch.testing.assert_close(encoder.encode(x), expected, rtol=1e-5, atol=1e-5)
    assert list(encoder.state_dict()) == ["channel_mapper.weight"]


def test_a_map_keeps_its_channels_where_none_are_given():
    x = randn(1, 3, 4, 4)
    assert SpatialRescaler(method="nearest", multiplier=2)(x)[0, :, ::2, ::2].equal(x[0])
    assert list(SpatialRescaler().state_dict()) == []
    with pytest.raises(ValueError, match="method='cubic' is not known; choose one of nearest"):
        SpatialRescaler(method="cubic")
