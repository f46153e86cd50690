"""What the page draws with: looks, the picture at the end, limits, cancelling, and the quick preview."""

import threading

import numpy as np
import pytest
import torch
import txt2img
from _session import Session
from PIL import Image
from webui import forms
from webui.line import Line
from webui.preview import FINE, Projection, leaves
from webui.studio import Limits, Look, Made, Studio, Task

from ldm.image import save_png


@pytest.fixture(scope="module")
def session(tiny):
    made = Session(txt2img.parse([*tiny, "--skip_grid"]))
    with made.loaded():
        yield made


@pytest.fixture(scope="module")
def studio(session):
    return Studio(session, Limits(side=32, steps=20))


def made(studio, **task):
    return list(studio.draw(Task(**{"steps": 4, "scale": 2.0, **task})))


def test_a_task_gives_a_look_after_each_step_and_then_the_picture(studio):
    *looks, last = made(studio, prompt="a red circle", seed=3)
    assert [look.step for look in looks] == [1, 2, 3, 4] and all(
        isinstance(look, Look) and look.total == 4 for look in looks
    )
    assert looks[0].picture is not None and looks[-1].left == 0
    assert isinstance(last, Made) and last.picture.size == (8, 8)
    assert (last.settings["prompt"], last.settings["seed"], last.settings["steps"]) == ("a red circle", 3, 4)


@pytest.mark.parametrize("sampler", [("DDIM", []), ("PLMS", ["--plms"]), ("DPM-Solver++", ["--dpm_solver"])])
def test_the_picture_is_what_txt2img_draws(sampler, studio, run):
    name, flag = sampler
    last = made(studio, prompt="a red circle", negative_prompt="a blue square", seed=5, sampler=name, width=12)[-1]
    flags = [
        "--prompt",
        "a red circle",
        "--negative_prompt",
        "a blue square",
        "--seed",
        5,
        "--W",
        12,
        "--scale",
        2,
        "--ddim_steps",
        4,
    ]
    assert run(*flags, *flag, "--n_samples", 1, "--n_iter", 1, "--outdir", "out")[0] == 0
    assert np.array_equal(np.asarray(last.picture), np.asarray(Image.open("out/samples/00000.png")))


def test_a_hole_is_filled_and_the_rest_stays(studio):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8))
    hole = np.zeros((16, 20), bool)
    hole[4:10, 4:12] = True
    last = made(studio, prompt="a red circle", picture=picture, hole=hole, strength=1.0)[-1]
    same = (np.asarray(last.picture) == np.asarray(picture)).all(-1)
    assert same[~hole].all() and not same[hole].all()


def test_a_picture_is_begun_from_with_its_share_of_the_steps(studio):
    picture = Image.new("RGB", (16, 8), "red")
    *looks, last = made(studio, picture=picture, strength=0.5, steps=8)
    assert looks[-1].step == looks[-1].total == 4 and last.picture.size == (16, 8)


def test_no_gradients_are_kept_in_another_thread(studio, monkeypatch):
    seen, decode = [], studio.session.model.decode_first_stage

    def watched(z):
        seen.append(torch.is_grad_enabled())
        return decode(z)

    monkeypatch.setattr(studio.session.model, "decode_first_stage", watched)
    thread = threading.Thread(target=lambda: seen.extend(map(type, made(studio))))
    thread.start()
    thread.join()
    assert Made in seen and False in seen and True not in seen


def test_leaving_early_cancels_the_rest_and_the_next_task_is_drawn(studio):
    steps = studio.draw(Task(prompt="a red circle", steps=20))
    assert next(steps).step == 1
    steps.close()
    assert isinstance(made(studio)[-1], Made)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ({"width": 33}, "width 33: this page draws from 1 to 32"),
        ({"height": 0}, "height 0"),
        ({"steps": 21}, "steps 21: this page draws from 1 to 20"),
        ({"scale": 1e300}, r"scale 1e\+300: this page takes -1000 to 1000"),
        ({"scale": float("nan")}, "scale nan: this page takes"),
        ({"sampler": "Euler"}, "'Euler' is unknown; choose DDIM, PLMS, DPM-Solver"),
        ({"width": 10}, "multiples of 4"),
        ({"prompt": "a" * 10_001}, "more than 10000 characters"),
        ({"picture": Image.new("RGB", (8, 8)), "hole": np.zeros((8, 8), bool)}, "paint over what is to be drawn anew"),
        ({"picture": Image.new("RGB", (64, 8))}, "width 64"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(task, why, studio):
    with pytest.raises(ValueError, match=why):
        made(studio, **task)


def test_what_cannot_be_drawn_is_refused_before_one_waits(studio):
    picture = Image.new("RGB", (8, 8))
    for task in (Task(width=10), Task(picture=picture, hole=np.zeros((8, 8), bool))):
        with pytest.raises(ValueError):
            studio.check(task)


def test_what_there_was_to_warn_of_comes_with_the_picture(studio):
    big = made(studio, picture=Image.new("RGB", (32, 32), "red"), strength=0.5)[-1]
    assert any("times the area that this model was made for" in note for note in big.notes)
    assert made(studio, prompt="a red circle")[-1].notes == ()


# ---------------------------------------------------------------------------------------------------------------- line


def test_first_come_first_served():
    line = Line(most=2)
    with line.place() as first:
        assert list(line.before(first)) == []
        with line.place() as second, line.place() as third:
            assert (next(line.before(second)), next(line.before(third))) == (1, 2)
            with pytest.raises(ValueError, match="2 wait already"), line.place():
                pass
        with line.place() as fourth:  # those two went
            assert next(line.before(fourth)) == 1


def test_one_waits_until_those_before_are_gone():
    line, seen = Line(most=2), []
    with line.place(), pytest.raises(KeyError), line.place() as mine:
        for ahead in line.before(mine):
            seen.append(ahead)
            raise KeyError  # who leaves, leaves his place
    with line.place() as mine:
        assert list(line.before(mine)) == [] and seen == [1]


def test_a_closed_line_lets_nobody_in_and_tells_whether_all_have_left():
    line = Line(most=2)
    with line.place(), line.place() as mine:
        assert not line.close(patience=0.1)
        assert list(line.before(mine)) == []  # it does not wait any more
        with pytest.raises(ValueError, match="closing"), line.place():
            pass
    assert line.close(patience=0)


# --------------------------------------------------------------------------------------------------------------- forms


def saved(path, **settings):
    save_png(Image.new("RGB", (8, 8)), path, settings)
    return path


def test_settings_come_back_as_fields(tmp_path):
    told = {"prompt": "a", "negative_prompt": "b", "steps": 9, "scale": 2.5, "eta": 0.5, "seed": 7, "width": 8,
            "height": 8, "sampler": "DPMSolver", "model": "shapes"}  # fmt: skip
    fields, said = forms.restored(str(saved(tmp_path / "1.png", **told)), "shapes")
    assert fields == {"prompt": "a", "negative": "b", "steps": 9, "scale": 2.5, "eta": 0.5, "seed": 7, "width": 8,
                      "height": 8, "sampler": "DPM-Solver++", "tab": "text"}  # fmt: skip
    assert said == "the settings of 1.png are back"


def test_what_a_file_cannot_bring_back_is_said(tmp_path):
    hole = {"prompt": "a", "init_img": "x.png", "mask": "m.png", "strength": 0.9, "model": "other"}
    fields, said = forms.restored(str(saved(tmp_path / "1.png", **hole)), "shapes")
    assert (fields["tab"], fields["hole_strength"]) == ("hole", 0.9)
    assert "nor what was painted" in said and "the model other, and here is shapes" in said
    with pytest.raises(ValueError, match="seed 18446744073709551615, which this page cannot hold"):
        forms.restored(str(saved(tmp_path / "2.png", prompt="a", seed=2**64 - 1)), "shapes")
    (tmp_path / "3.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="^3.png is no PNG that can be read"):
        forms.restored(str(tmp_path / "3.png"), "shapes")


def test_a_photograph_is_shrunk_to_what_is_drawn(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "photo.jpg")
    given = {"prompt": "", "negative": "", "steps": 4, "scale": 2, "eta": 0, "sampler": "DDIM", "strength": 0.5}
    task = forms.task_of({**given, "tab": "picture", "picture": str(tmp_path / "photo.jpg")}, 1, 100)
    assert task.picture.size == (100, 75)
    layer = np.zeros((384, 512, 4), np.uint8)
    layer[:192, :, 3] = 255
    base = {"base": str(tmp_path / "photo.jpg"), "editor": {"layers": [layer]}, "hole_strength": 1}
    task = forms.task_of({**given, **base, "tab": "hole"}, 1, 100)
    assert task.hole.shape == (75, 100) and task.hole[:37].all() and not task.hole[38:].any()


@pytest.mark.parametrize("size", [(64, 64), (100, 30), (4000, 3000), (600, 600)])
def test_the_editor_shows_any_picture_at_a_size_for_its_brush(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "it.png")
    shown = forms.to_fill(str(tmp_path / "it.png"))["background"]
    assert 256 < max(shown.size) <= 768 and abs(shown.width / shown.height - size[0] / size[1]) < 0.01


def test_errors_name_the_file_and_not_where_the_server_keeps_it(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="^mine.png is no picture that can be read"):
        forms.read(str(tmp_path / "mine.png"))


def test_out_of_memory_is_explained_and_a_bug_is_not_hidden():
    assert "smaller picture" in forms.explained(RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"))
    with pytest.raises(RuntimeError, match="a bug"):
        forms.explained(RuntimeError("a bug"))


# ------------------------------------------------------------------------------------------------------------- preview


class Linear:
    """A model whose decoder is linear in the latents: each makes a block of 8 × 8 pixels of one colour."""

    device = torch.device("cpu")
    colours = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) / 4

    def encode_first_stage(self, x):
        small = torch.nn.functional.avg_pool2d(x, 8)
        return torch.einsum("cd,bdhw->bchw", torch.linalg.pinv(self.colours), small)

    def get_first_stage_encoding(self, z):
        return z

    def decode_first_stage(self, z):
        return torch.einsum("dc,bchw->bdhw", self.colours, z).repeat_interleave(8, 2).repeat_interleave(8, 3)

    def parameters(self):
        return iter(())

    first_stage_model = torch.nn.Identity()


def test_the_preview_of_a_linear_decoder_is_exact():
    model = Linear()
    project = Projection(model, (4, 12, 12))
    z = model.encode_first_stage(leaves(2, 96) * 0.9)
    expected = torch.nn.functional.interpolate(model.decode_first_stage(z), (12 * FINE, 12 * FINE), mode="area")
    assert (project(z) - expected.clamp(-1, 1)).abs().max() < 0.05


def test_it_learns_from_what_is_drawn():
    model, other = Linear(), Linear()
    project = Projection(model, (4, 12, 12))
    other.colours = model.colours.flip(0)  # what it was fitted to is not so any more
    z = torch.randn(4, 4, 12, 12, generator=torch.Generator().manual_seed(2))
    images = other.decode_first_stage(z)
    wanted = torch.nn.functional.interpolate(images, (48, 48), mode="area").clamp(-1, 1)
    before = (project(z) - wanted).square().mean()
    project.learn(z, images, weight=20)
    assert (project(z) - wanted).square().mean() < before / 4


def test_leaves_are_pictures_and_the_same_each_time():
    one = leaves(4, 64)
    assert one.shape == (4, 3, 64, 64) and one.abs().max() <= 1 and one.std() > 0.3
    assert torch.equal(one, leaves(4, 64))
