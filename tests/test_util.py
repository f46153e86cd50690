"""Building objects from configs: what may be named, and what is said where something may not."""

import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm import util
from ldm.util import allow_targets, count_params, default, get_obj_from_str, instantiate_from_config


@pytest.fixture(autouse=True)
def _same_allow_list_afterwards(monkeypatch):
    monkeypatch.setattr(util, "_allowed_everywhere", list(util._allowed_everywhere))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`outsider.net`, a package that is on no allow-list."""
    (tmp_path / "outsider").mkdir()
    (tmp_path / "outsider" / "net.py").write_text(
        "import subprocess\n"
        "from subprocess import Popen\n"
        "from ldm.util import instantiate_from_config\n"
        "class Net:\n"
        "    def __init__(self, part=None, width=1):\n"
        "        self.width, self.part = width, part and instantiate_from_config(part)\n"
        "def function(width=1): return width\n"
    )
    (tmp_path / "outsider" / "needs.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "outsiders.py").write_text("class Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "outsider"
    for name in [name for name in sys.modules if name.startswith("outsider")]:
        del sys.modules[name]


def test_a_target_is_built_with_its_params():
    layer = instantiate_from_config({"target": "torch.nn.Linear", "params": {"in_features": 3, "out_features": 2}})
    assert isinstance(layer, nn.Linear) and layer.weight.shape == (2, 3)


@pytest.mark.parametrize("params", [{}, {"params": None}, {"params": {}}])
def test_params_may_be_missing_or_empty(params):
    assert isinstance(instantiate_from_config({"target": "torch.nn.Identity", **params}), nn.Identity)


def test_an_omegaconf_config_is_a_config():
    config = OmegaConf.create("{target: torch.nn.Conv2d, params: {in_channels: 2, out_channels: 3, kernel_size: 1}}")
    assert instantiate_from_config(config).weight.shape == (3, 2, 1, 1)


@pytest.mark.parametrize("word", ["__is_first_stage__", "__is_unconditional__"])
def test_compvis_words_for_nothing_build_nothing(word):
    assert instantiate_from_config(word) is None


@pytest.mark.parametrize("config", ["torch.nn.Linear", {"params": {}}, {}, None, 3])
def test_a_config_without_a_target_is_an_error_that_shows_it(config):
    with pytest.raises(ValueError, match=r"does not say what to build; write a mapping with `target`"):
        instantiate_from_config(config)


def test_a_target_off_the_list_is_refused_before_it_is_imported(package):
    with pytest.raises(ValueError, match=r"'outsider.net.Net' is not on the allow-list \(ldm, torch.nn\).*allow_"):
        instantiate_from_config({"target": "outsider.net.Net"})
    assert "outsider" not in sys.modules and "outsider.net" not in sys.modules


@pytest.mark.parametrize("target", ["os.system", "builtins.exec", "subprocess.Popen", "torch.load", "Net", ""])
def test_dangerous_and_shapeless_targets_are_refused(target):
    with pytest.raises(ValueError, match="is not on the allow-list"):
        instantiate_from_config({"target": target})


@pytest.mark.parametrize("allow", ["outsider", "outsider.", ["outsider."], ("outsider.net",), ["outsider.net.Net"]])
def test_a_caller_allows_more_for_one_call(package, allow):
    assert instantiate_from_config({"target": "outsider.net.Net", "params": {"width": 5}}, allow=allow).width == 5
    with pytest.raises(ValueError, match="allow-list"):
        instantiate_from_config({"target": "outsider.net.Net"})


def test_a_package_is_allowed_for_good(package):
    allow_targets("outsider.")
    assert instantiate_from_config({"target": "outsider.net.Net"}).width == 1


def test_a_prefix_ends_at_a_dot(package):
    with pytest.raises(ValueError, match="'outsiders.Net' is not on the allow-list"):
        instantiate_from_config({"target": "outsiders.Net"}, allow="outsider")


def test_nested_configs_inherit_the_callers_list(package):
    inner = {"target": "outsider.net.Net", "params": {"width": 7}}
    outer = {"target": "outsider.net.Net", "params": {"part": inner}}
    assert instantiate_from_config(outer, allow="outsider").part.width == 7


def test_the_list_is_narrow_again_after_an_error(package):
    with pytest.raises(TypeError, match="no_such_option"):
        instantiate_from_config({"target": "outsider.net.Net", "params": {"no_such_option": 1}}, allow="outsider")
    with pytest.raises(ValueError, match="allow-list"):
        instantiate_from_config({"target": "outsider.net.Net"})


@pytest.mark.parametrize("target", ["outsider.net.function", "outsider.net.subprocess"])
def test_only_classes_are_built(package, target):
    with pytest.raises(TypeError, match="only a class can be built"):
        instantiate_from_config({"target": target}, allow="outsider")


def test_a_class_that_an_allowed_module_imported_from_elsewhere_is_refused(package, monkeypatch):
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *args, **kwargs: pytest.fail("was called"))
    with pytest.raises(ValueError, match=r"net.Popen', which is 'subprocess.Popen', is not on the allow-list"):
        instantiate_from_config({"target": "outsider.net.Popen", "params": {"args": "true"}}, allow="outsider")


def test_misspelt_targets_say_which_part_is_unknown():
    with pytest.raises(ValueError, match=r"there is no module 'ldm.modles'"):
        instantiate_from_config({"target": "ldm.modles.autoencoder.AutoencoderKL"})
    with pytest.raises(ValueError, match=r"the module 'torch.nn' has no 'Liner'"):
        instantiate_from_config({"target": "torch.nn.Liner"})


def test_a_missing_dependency_of_the_target_is_reported_as_itself(package):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        instantiate_from_config({"target": "outsider.needs.Net"}, allow="outsider")


@pytest.mark.parametrize("prefix", ["", "."])
def test_a_prefix_that_would_allow_everything_is_refused(prefix):
    with pytest.raises(ValueError, match="an empty prefix would allow every target"):
        allow_targets(prefix)


def test_get_obj_from_str_names_any_object_of_an_allowed_module(package):
    assert get_obj_from_str("ldm.util.default") is default
    assert get_obj_from_str("outsider.net.function", allow="outsider")(3) == 3
    again = get_obj_from_str("outsider.net.Net", reload=True, allow="outsider")
    assert again is not None and again is get_obj_from_str("outsider.net.Net", allow="outsider")


def test_default_calls_functions_and_nothing_else():
    assert default(0, 1) == 0 and default(None, 1) == 1 and default(None, lambda: 2) == 2
    assert default(None, nn.Linear) is nn.Linear


def test_count_params_counts_and_logs_only_if_asked(caplog):
    caplog.set_level("INFO")
    assert count_params(nn.Linear(3, 2)) == 8 and not caplog.records
    assert count_params(nn.Linear(3, 2), verbose=True) == 8 and "Linear" in caplog.text


def test_pictures_and_feature_maps_are_told_apart():
    picture, features = torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 4, 4)
    assert util.isimage(picture) and not util.ismap(picture)
    assert util.ismap(features) and not util.isimage(features)
    assert not util.isimage("a picture") and not util.ismap(torch.zeros(8))


def test_mean_flat_keeps_the_batch():
    assert util.mean_flat(torch.arange(12.0).reshape(2, 2, 3)).tolist() == [2.5, 8.5]
