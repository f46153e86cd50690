"""What a class-conditional network takes as `y`, and what it says of anything else."""

import pytest
import torch
from test_networks import inputs, small_unet


def test_one_number_a_sample_may_come_as_a_row_or_a_column():
    model = small_unet(num_classes="continuous")
    x, t, _ = inputs()
    y = torch.tensor([0.5, 2.0])
    assert torch.equal(model(x, t, y=y), model(x, t, y=y[:, None]))


@pytest.mark.parametrize(
    ("options", "y", "said"),
    [
        ({"num_classes": 10}, torch.tensor([3, 10]), "classes from 3 to 10; this network knows 0 to 9"),
        ({"num_classes": 10}, torch.tensor([-1, 3]), "classes from -1 to 3"),
        ({"num_classes": 10}, torch.tensor([0.5, 3.0]), "float32.*give class numbers"),
        ({"num_classes": "sequential", "adm_in_channels": 6}, torch.zeros(2, 5), r"takes \(B, 6\)"),
        ({"num_classes": "continuous"}, torch.zeros(2, 5), r"takes \(B, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_told_in_the_callers_terms(options, y, said):
    x, t, _ = inputs()
    with pytest.raises(ValueError, match=said):
        small_unet(**options)(x, t, y=y)
