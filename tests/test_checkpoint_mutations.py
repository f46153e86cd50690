"""Whatever bytes a file has, it is tensors or a CheckpointError."""

import random

import pytest
from fuzzing.checkpoints import beyond, good_files
from fuzzing.mutate import changed

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import load_state_dict


def outcomes(path, form, count, seed=0):
    """How often a changed file was read and how often refused; any other outcome is an exception from here."""
    content, pack = good_files()[form]
    chance, found = random.Random(f"{form} {seed}"), {"read": 0, "refused": 0}
    for _ in range(count):
        path.write_bytes(pack(changed(content, chance)))
        try:
            weights = load_state_dict(path)
        except CheckpointError as error:
            assert repr(str(path)) in str(error) and str(error).isprintable()
            found["refused"] += 1
        else:
            assert beyond(path)(weights) is None
            found["read"] += 1
    return found


@pytest.mark.parametrize("form", good_files())
def test_a_changed_file_is_read_or_refused_and_nothing_else(form, tmp_path):
    found = outcomes(tmp_path / "a.ckpt", form, count=150)
    assert found["refused"] > 50


@pytest.mark.parametrize("form", sorted(good_files().keys() - {"bare pickle"}))
def test_unchanged_they_are_read(form, tmp_path):
    content, pack = good_files()[form]
    (tmp_path / "a.ckpt").write_bytes(pack(content))
    assert load_state_dict(tmp_path / "a.ckpt").keys() == {"a.weight", "a.bias", "count"}
