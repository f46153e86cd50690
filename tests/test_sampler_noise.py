"""Which noise DDIMSampler uses."""

import numpy as np
import pytest
import torch
from _small_model import SHAPE, run


def test_a_sequence_of_noise_is_the_noise_that_is_used():
    g = torch.Generator().manual_seed(3)
    drawn = run(eta=1.0, generator=g)
    g = torch.Generator().manual_seed(3)
    given = [torch.randn(3, *SHAPE, generator=g) for _ in range(5)]
    assert torch.equal(run(eta=1.0, normals_sequence=given), drawn)
    assert torch.equal(run(eta=1.0, normals_sequence=torch.stack(given)), drawn)
    state = torch.get_rng_state()
    run(eta=1.0, normals_sequence=given)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_device_draws_from_that_devices_generator():
    torch.manual_seed(5)
    here = run(eta=1.0)
    torch.manual_seed(5)
    assert torch.equal(run(eta=1.0, noise_device="cpu"), here)


def test_a_seed_may_be_any_kind_of_integer():
    plain = run(eta=1.0, seeds=[1, 2, 3])
    assert torch.equal(run(eta=1.0, seeds=np.array([1, 2, 3])), plain)
    assert torch.equal(run(eta=1.0, seeds=torch.tensor([1, 2, 3])), plain)


def test_a_seed_may_be_as_large_as_torch_takes_and_no_larger():
    run(eta=1.0, seeds=[2**64 - 1, -1, -(2**63)])
    for seed in (2**64, 2**70, -(2**63) - 1):
        with pytest.raises(ValueError, match=rf"seeds holds {seed}, .* -2\*\*63 to 2\*\*64 - 1"):
            run(seeds=[0, seed, 1])
