"""Tiny models with random weights and the scripts to run on them; a tiny pipeline of diffusers."""

import _cli
import pytest
import txt2img
from _script_models import written


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The flags that choose a tiny model, written to files as a user has them."""
    return tuple(written(tmp_path_factory.mktemp("tiny"), lambda params: None, "tiny"))


@pytest.fixture
def run(tiny, tmp_path, capsys, monkeypatch):
    """Run a script's main in a folder of its own; returns (exit status, stdout's lines, and stderr's that it says)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, model=tiny, script=txt2img):
        name, status = script.__name__, 0
        try:
            _cli.run(script.main, name, [*model, *map(str, flags)])
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, said.out.splitlines(), [line for line in said.err.splitlines() if line.startswith(name)]

    return run


@pytest.fixture
def no_model(monkeypatch):
    """A test that fails where a model is loaded."""
    monkeypatch.setattr("ldm.checkpoint.load_model", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.fixture(scope="session", params=["v1", "v2-v"])
def pipe(request):
    """A pipeline of diffusers with random weights, shaped as Stable Diffusion 1, or 2 with v-prediction."""
    pytest.importorskip("transformers")
    import _diffusers

    return _diffusers.pipeline(request.param)


@pytest.fixture(scope="session")
def folder(pipe, tmp_path_factory):
    """Where it has saved itself."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(folder)
    return folder
