"""docs/repository.md against the code."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from _promised_names import PROMISED

PAGE = (Path(__file__).parent.parent / "docs" / "repository.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_table_of_names_is_the_list_that_the_tests_hold():
    rows = re.findall(r"^\| `(ldm[\w.]*)` \| (.*) \|$", PAGE, re.M)
    assert {module: tuple(re.findall(r"`(\w+)`", names)) for module, names in rows} == PROMISED


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_what_the_examples_import_is_there(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ldm"):
            if node.module.endswith(".lightning"):
                pytest.importorskip("lightning", reason="lightning is not installed")
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_what_the_page_names_of_the_tests_and_the_model_is_there():
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm.modules.attention import CrossAttention

    root = Path(__file__).parent.parent
    for path in re.findall(r"`(tests/[\w.]+)`", PAGE):
        assert (root / path).exists(), path
    overridden = re.search(r"may override (.*?); a U-Net", PAGE, re.S)[1]
    assert all(callable(getattr(LatentDiffusion, name)) for name in re.findall(r"`(\w+)`", overridden))
    layer = CrossAttention(8, heads=2, dim_head=4)
    assert all(hasattr(layer, name) for name in "heads scale to_q to_k to_v to_out".split())
