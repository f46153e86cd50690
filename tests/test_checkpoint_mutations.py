"""Whatever bytes a file has, it is tensors or a CheckpointError."""

import pytest
from _mutations import good_files, outcomes

from ldm.checkpoint.files import load_state_dict


@pytest.mark.parametrize("form", good_files())
def test_a_changed_file_is_read_or_refused_and_nothing_else(form, tmp_path):
    found = outcomes(tmp_path / "a.ckpt", form, count=150)
    assert found["refused"] > 50


@pytest.mark.parametrize("form", good_files().keys() - {"bare pickle"})
def test_unchanged_they_are_read(form, tmp_path):
    content, pack = good_files()[form]
    (tmp_path / "a.ckpt").write_bytes(pack(content))
    assert load_state_dict(tmp_path / "a.ckpt").keys() == {"a.weight", "a.bias", "count"}
