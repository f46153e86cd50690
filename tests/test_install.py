"""What setup.py packs and asks for; found out without installing anything."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def arguments():
    """What setup.py tells setuptools."""
    setuptools = pytest.importorskip("setuptools")
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", told.update)
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return told


def requirements(arguments):
    return arguments["install_requires"] + [r for extra in arguments["extras_require"].values() for r in extra]


def test_every_module_of_the_library_is_in_a_package_that_is_found(arguments):
    modules = [path.relative_to(ROOT) for path in ROOT.glob("ldm/**/*.py")]
    left_out = [path for path in modules if ".".join(path.parent.parts) not in arguments["packages"]]
    assert modules and not left_out


def test_nothing_but_the_library_is_packed(arguments):
    assert all(re.fullmatch(r"ldm(\.\w+)*", name) for name in arguments["packages"])
    assert not any("__pycache__" in name for name in arguments["packages"])


def test_ldm_has_no_init_so_that_it_merges_with_a_repositorys_own():
    assert not [name for name in ("ldm", "ldm/models", "ldm/modules") if (ROOT / name / "__init__.py").exists()]


def test_the_bundled_weights_are_packed(arguments):
    weights = [path.relative_to(ROOT / "ldm/assets") for path in ROOT.glob("ldm/assets/**/*.safetensors")]
    packed = arguments["package_data"]["ldm.assets"]
    assert all(any(path.match(pattern) for pattern in packed) for path in weights)
    assert not weights or "ldm.assets" in arguments["packages"]


@pytest.mark.parametrize("editable", [False, True])
def test_the_configs_are_packed_beside_the_code_that_looks_for_them(arguments, tmp_path, monkeypatch, editable):
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    build = arguments["cmdclass"]["build_py"](setuptools.Distribution({"name": "nothing-else"}))
    build.build_lib, build.editable_mode = str(tmp_path), editable
    build.ensure_finalized()
    build.run()
    packed = {path.relative_to(tmp_path / "ldm") for path in tmp_path.rglob("*.yaml")}
    assert packed == (set() if editable else {path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml")})


def test_the_base_needs_torch_numpy_tqdm_and_omegaconf_alone(arguments):
    names = {re.match(r"[\w-]+", r)[0] for r in arguments["install_requires"]}
    assert names == {"torch", "numpy", "tqdm", "omegaconf"}


def test_constraints_pin_a_version_in_range_for_everything_asked_for(arguments):
    packaging = pytest.importorskip("packaging.requirements")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [packaging.Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    for wanted in map(packaging.Requirement, requirements(arguments)):
        mine = [pin for pin in pins if pin.name == wanted.name and (not pin.marker or pin.marker.evaluate())]
        assert len(mine) == 1, f"{wanted.name} is pinned {len(mine)} times"
        (version,) = (spec.version for spec in mine[0].specifier)
        assert wanted.specifier.contains(version), f"{mine[0]} is outside {wanted}"


def test_the_licence_is_there_and_named(arguments):
    assert arguments["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()
