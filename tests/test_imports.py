"""Imports point one way, as the design says. The source is read, so that an import inside a function counts too."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"torch", "numpy", "tqdm", "omegaconf"}  # what setup.py requires; the rest is optional

# scripts -> pipeline, bulk -> models, checkpoint -> modules -> nothing
RANK = {"scripts": 4, "pipeline": 3, "bulk": 3, "models": 2, "checkpoint": 2, "modules": 1}
RANK |= dict.fromkeys(("image", "picture_files", "depth_files", "data", "lr_scheduler"), 0)
# At the path of the textual-inversion repository, and a part of the models: it reads files, and no module needs it.
AT_HOME_ELSEWHERE = {"ldm.modules.embedding_manager": "models"}


def files(root):
    return sorted([*root.glob("ldm/**/*.py"), *root.glob("scripts/**/*.py")])


def room(path, root):
    """ldm/modules/ema.py -> modules; ldm/util.py -> util; scripts/txt2img.py -> scripts."""
    parts = path.relative_to(root).with_suffix("").parts
    return "scripts" if parts[0] == "scripts" else room_of(".".join(parts))


def room_of(module):
    """ldm.modules.ema -> modules"""
    return AT_HOME_ELSEWHERE.get(module) or f"{module}.".split(".")[1]


def imports(path, root, top_level_only=False):
    """The dotted names that a file imports; relative ones made absolute."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(root).parent.parts
    for node in at_import(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module])))
            stem = stem if node.level else node.module
            yield from ([f"{stem}.{alias.name}" for alias in node.names] if stem in {"ldm", ""} else [stem])


def at_import(tree):
    """The nodes that run when the file is imported: not the bodies of functions, nor what is there for annotations."""
    for node in ast.iter_child_nodes(tree):
        for_annotations = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not for_annotations and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from at_import(node)


def allowed(user, used):
    if used == user:
        return True
    if user in {"sampling", "util"}:
        return False
    if used in {"sampling", "util", "assets"}:
        return True
    return RANK[user] > RANK.get(used, 5) or (RANK[user] == RANK.get(used) and user != "modules")


def against_the_order(root):
    """(file, import) wherever a file imports a room that it may not."""
    for path in files(root):
        for name in imports(path, root):
            top = name.split(".")[0]
            if top in ("ldm", "scripts") and not allowed(room(path, root), room_of(name) if top == "ldm" else top):
                yield str(path.relative_to(root)), name


def outsiders_in_the_core(root):
    """(file, import) wherever the core imports more than torch, numpy, tqdm and the standard library."""
    known = {"torch", "numpy", "tqdm", "ldm"} | set(sys.stdlib_module_names)
    for path in sorted(root.glob("ldm/sampling/**/*.py")):
        yield from ((str(path.relative_to(root)), n) for n in imports(path, root) if n.split(".")[0] not in known)


def test_there_is_something_to_walk():
    assert {"sampling"} <= {room(path, ROOT) for path in files(ROOT)}


def test_every_room_has_a_place_in_the_order():
    rooms = {room(path, ROOT) for path in files(ROOT)}
    assert rooms <= set(RANK) | {"sampling", "util", "assets"}, "give the new room a rank here and in the design"


def test_imports_point_one_way():
    assert list(against_the_order(ROOT)) == []


def test_the_core_needs_only_torch_numpy_and_tqdm():
    assert list(outsiders_in_the_core(ROOT)) == []


def test_optional_packages_are_imported_where_they_are_used():
    known = BASE | {"ldm"} | set(sys.stdlib_module_names)
    early = [
        (str(path.relative_to(ROOT)), name)
        for path in sorted(ROOT.glob("ldm/**/*.py"))
        for name in imports(path, ROOT, top_level_only=True)
        if name.split(".")[0] not in known
    ]
    assert early == []


def test_the_shared_folders_stay_namespace_packages():
    """An __init__.py there would hide the folder of the same name in the repository that takes us in."""
    shared = [ROOT / "ldm", *(p for top in ("models", "modules") for p in (ROOT / "ldm").glob(f"{top}/**"))]
    assert [str(p) for p in shared if (p / "__init__.py").exists()] == []
    assert (ROOT / "ldm" / "sampling" / "__init__.py").exists()


def write(path, text):
    path.parent.mkdir(parents=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "file, line",
    [
        ("ldm/sampling/ddim.py", "from ldm.util import default"),
        ("ldm/sampling/ddim.py", "from ..util import default"),
        ("ldm/sampling/ddim.py", "from .. import util"),
        ("ldm/sampling/ddim.py", "def f():\n    import ldm.models.diffusion.ddpm"),
        ("ldm/util.py", "from ldm.image import to_pil"),
        ("ldm/modules/ema.py", "from ldm.models.autoencoder import AutoencoderKL"),
        ("ldm/modules/ema.py", "if True:\n    from ..checkpoint import load"),
        ("ldm/modules/ema.py", "from ldm.modules.embedding_manager import EmbeddingManager"),
        ("ldm/models/autoencoder.py", "from ldm import pipeline"),
        ("ldm/checkpoint.py", "import ldm.bulk"),
        ("ldm/pipeline.py", "from scripts.txt2img import main"),
        ("ldm/pipeline.py", "import ldm.unheard_of"),
    ],
)
def test_the_walk_sees_an_import_against_the_order(tmp_path, file, line):
    write(tmp_path / file, line)
    assert len(list(against_the_order(tmp_path))) == 1


@pytest.mark.parametrize(
    "file, line",
    [
        ("ldm/sampling/ddim.py", "from .mask import blend\nfrom ldm.sampling.noise import draw\nimport math"),
        (
            "ldm/modules/ema.py",
            "from ldm.modules.attention import f\nfrom ldm.sampling import q_sample\nimport ldm.util",
        ),
        ("ldm/pipeline.py", "from .models.autoencoder import A\nfrom .checkpoint import load\nfrom . import image"),
        ("scripts/txt2img.py", "from ldm.pipeline import P\nfrom ldm import bulk, util"),
    ],
)
def test_the_walk_lets_the_allowed_ones_pass(tmp_path, file, line):
    write(tmp_path / file, line)
    assert list(against_the_order(tmp_path)) == []


def test_the_walk_sees_an_outsider_in_the_core(tmp_path):
    write(tmp_path / "ldm/sampling/ddim.py", "def f():\n    from einops import rearrange\n\nimport torch, math")
    assert list(outsiders_in_the_core(tmp_path)) == [("ldm/sampling/ddim.py", "einops")]
