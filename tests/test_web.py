"""scripts/web.py in a real browser, headless: what one types, sees, cancels, paints, drops and is told."""

import base64
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import _config
import numpy as np
import pytest
import web
from PIL import Image

from ldm.image import read_settings

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout"),
]
gradio = pytest.importorskip("gradio", reason="gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=30_000)
INSIDE = "e => { const {top, bottom} = e.getBoundingClientRect(); return top > -1 && bottom < innerHeight + 1 }"
DROPPED = """const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), given = new DataTransfer()
    given.items.add(new File([bytes], name, {type: 'image/png'})); return given"""
PROMPT = "a red circle above a blue square"
BLUE, BRUSH = (36, 82, 214), (255, 43, 214)
LONG = {"prompt": PROMPT, "steps": 250, "width": 128, "height": 128}  # seconds, on whatever machine


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, folder of the pictures)"""
    outdir = tmp_path_factory.mktemp("web")
    with served(outdir) as (process, log):
        yield _address(process, log), outdir


@contextlib.contextmanager
def served(outdir):
    """(the page's process, the file of what it says); Ctrl-C is not ignored, as it would be below a shell's `&`."""
    command = [sys.executable, "-u", str(_config.ROOT / "scripts" / "web.py"), "--port", "0", "--outdir", str(outdir)]
    path = outdir.parent / f"{outdir.name}.log"
    with path.open("w") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=log, stderr=log, env={**os.environ, "COLUMNS": "200"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            yield process, path
        finally:
            process.terminate()
            process.wait(timeout=30)


def _address(process, log):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.2)
    pytest.fail(log.read_text())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser, server):
    """The page as it opens; it fails a test in which another host was asked for anything."""
    opened, asked = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    opened.on("request", lambda request: asked.append(request.url))
    opened.set_default_timeout(30_000)
    opened.goto(server[0])
    opened.wait_for_selector("#draw")
    yield opened
    opened.close()
    others = [url for url in asked if not url.startswith((server[0], "data:", "blob:"))]
    assert asked and not others


def fill(page, **fields):
    for name, value in fields.items():
        page.fill(f"#{name} textarea" if name in ("prompt", "negative") else f"#{name} input", str(value))


def status(page, pattern, seconds=60):
    """The status line, once it is as the pattern says."""
    page.wait_for_function(
        "pattern => new RegExp(pattern).test(document.querySelector('#status .prose').innerText)",
        arg=pattern,
        timeout=seconds * 1000,
    )
    return page.inner_text("#status .prose")


def draw(page, **fields):
    """Draw with these fields; the name of the file."""
    fill(page, **fields)
    before = page.inner_text("#status .prose")
    page.click("#draw")
    now = "document.querySelector('#status .prose').innerText"
    script = f"before => {now} !== before && {now}.includes('saved')"
    page.wait_for_function(script, arg=before, timeout=60_000)
    return re.search(r"\d+\.png", page.inner_text("#status .prose"))[0]


def shown(page, name, file):
    """The address of the picture there, once it is that of the file."""
    expect(page.locator(f"#{name} img")).to_have_attribute("src", re.compile(re.escape(file) + "$"))
    return page.get_attribute(f"#{name} img", "src")


def coloured(element, colour):
    """Whether some of what is seen of it has this colour, or nearly so."""
    seen = np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)
    return (np.abs(seen - colour).max(-1) < 40).mean() > 0.01


def until(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_prompt_is_drawn_with_looks_before_the_picture(page, server):
    fill(page, prompt=PROMPT, steps=40)
    page.evaluate(
        """() => { window.looks = new Set();
        new MutationObserver(() => { const img = document.querySelector('#preview img'); if (img) looks.add(img.src); })
            .observe(document.querySelector('#preview'), {subtree: true, childList: true, attributes: true}) }"""
    )
    page.click("#draw")
    left = status(page, r"step \d+ of 40, \d+ s left")
    name = re.search(r"\d+\.png", status(page, "saved as"))[0]
    assert left
    page.wait_for_function("looks.size >= 4")  # three at least, and the picture
    made = read_settings(server[1] / name)
    assert (made["prompt"], made["steps"], made["width"]) == (PROMPT, 40, 64)
    assert f"seed {made['seed']}" in page.inner_text("#status .prose")
    page.wait_for_selector("#gallery img")
    told = page.inner_text("#gallery")
    assert PROMPT in told and "DDIM, 40 steps, scale 3, eta 0" in told and str(made["seed"]) in told


def test_cancelling_stops_within_a_step_and_the_next_one_is_drawn(page, server):
    there = len(list(server[1].glob("*.png")))
    fill(page, **LONG)
    page.click("#draw")
    status(page, r"step \d+ of 250")
    page.click("#cancel")
    status(page, "cancelled", 10)
    time.sleep(1)
    assert page.inner_text("#status .prose") == "cancelled"
    draw(page, steps=5)
    assert len(list(server[1].glob("*.png"))) == there + 1


def test_a_closed_tab_frees_the_model(browser, server, page):
    other = browser.new_page()
    other.goto(server[0])
    other.wait_for_selector("#draw")
    fill(other, **LONG)
    other.click("#draw")
    status(other, r"step \d+ of 250")
    other.close()
    began = time.monotonic()
    draw(page, prompt=PROMPT, steps=5)
    taken = time.monotonic() - began
    last = max(server[1].glob("*.png"), key=lambda path: path.stat().st_mtime)
    assert read_settings(last)["steps"] == 5, taken
    assert not any(read_settings(path)["steps"] == 250 for path in server[1].glob("*.png"))


def paint(page, colour):
    """Paint about the middle of the picture in the editor, once it is there: some of it has this colour."""
    canvas = page.wait_for_selector("#editor canvas")
    until(lambda: coloured(canvas, colour))
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y - 30)
    page.mouse.down()
    for k in range(1, 9):
        page.mouse.move(x - 40 + 10 * k, y - 30 + (k % 2) * 40, steps=4)
    page.mouse.up()
    until(lambda: coloured(canvas, BRUSH))


def changed(before, after):
    """(H, W): where two pictures differ."""
    before, after = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (before, after))
    return np.abs(before - after).max(-1) > 0


def test_a_painted_hole_is_filled_and_all_else_stays_as_it_was(page, server):
    name = draw(page, prompt="a blue square", steps=8)
    page.click("#to_hole")
    paint(page, BLUE)
    filled = draw(page, prompt="a red star", steps=8)
    anew = changed(server[1] / name, server[1] / filled)
    assert 0.01 < anew.mean() < 0.7  # where the brush was, and not beyond it
    rows, columns = np.nonzero(anew)
    assert anew.shape == (64, 64) and rows.min() > 4 and rows.max() < 60 and columns.min() > 4 and columns.max() < 60
    assert read_settings(server[1] / filled)["mask"] == "mask.png"


def test_a_picture_of_ones_own_is_dropped_painted_and_filled(page, server, tmp_path):
    page.get_by_role("tab", name="fill a hole").click()
    for path, colour in ((tmp_path / "other.png", BLUE), (tmp_path / "mine.png", (200, 150, 60))):  # the second counts
        Image.new("RGB", (150, 100), colour).save(path)
        script = f"([name, data]) => {{ {DROPPED} }}"
        data = page.evaluate_handle(script, [path.name, base64.b64encode(path.read_bytes()).decode()])
        page.locator("#upload button").dispatch_event("drop", {"dataTransfer": data})
        paint(page, colour)
    filled = draw(page, prompt="a red star", steps=8)
    anew = changed(path, server[1] / filled)
    assert anew.shape == (100, 150) and 0.01 < anew.mean() < 0.5
    assert anew[30:70, 50:100].any() and not anew[:15].any() and not anew[-15:].any() and not anew[:, :30].any()


def test_a_picture_is_varied(page, server):
    draw(page, prompt="a blue square", steps=5)
    page.click("#to_picture")
    page.wait_for_selector("#picture img")
    name = draw(page, prompt="a green square", steps=8)
    made = read_settings(server[1] / name)
    assert (made["strength"], made["init_img"], made["prompt"]) == (0.75, "picture.png", "a green square")


def test_a_dropped_png_brings_its_settings_back_and_the_same_picture(page, server):
    name = draw(page, prompt="a small green heart", steps=6, scale=2.5, eta=0.5)
    page.reload()
    page.wait_for_selector("#draw")
    page.set_input_files("#restore input[type=file]", server[1] / name)
    status(page, "are back")
    expect(page.locator("#prompt textarea")).to_have_value("a small green heart")
    for field, value in (("steps", "6"), ("scale", "2.5"), ("eta", "0.5")):
        expect(page.locator(f"#{field} input")).to_have_value(value)
    again = draw(page)
    assert read_settings(server[1] / again) == read_settings(server[1] / name)
    assert np.array_equal(np.asarray(Image.open(server[1] / again)), np.asarray(Image.open(server[1] / name)))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"width": 65}, "width 65: this model takes multiples of 16, such as 80"),
        ({"width": 4096}, "width 4096: this page draws from 1 to 1024"),
        ({"steps": 0}, "steps 0: this page draws from 1 to 250"),
        ({"seed": -5}, "seed -5: this page takes whole numbers from 0 to"),
        ({"seed": ""}, "seed: there is no number"),
    ],
)
def test_what_cannot_be_drawn_is_told(fields, why, page):
    fill(page, prompt=PROMPT, **fields)
    page.click("#draw")
    expect(page.locator(".toast-wrap")).to_contain_text(why)
    expect(page.locator("#status")).to_contain_text(why)
    expect(page.locator("#cancel")).to_be_disabled()  # there is nothing to cancel


def test_the_tab_is_taken_that_is_seen_however_quick_one_is(page):
    fill(page, prompt=PROMPT, steps=3)
    quick = "() => { document.querySelectorAll('[role=tab]')[2].click(); document.querySelector('#draw').click() }"
    page.evaluate(quick)
    assert "there is no picture to fill" in status(page, "no picture|saved")


def test_an_empty_tab_and_a_file_without_settings_are_told(page, tmp_path):
    page.get_by_role("tab", name="fill a hole").click()
    page.click("#draw")
    expect(page.locator(".toast-wrap")).to_contain_text("there is no picture to fill")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    page.set_input_files("#restore input[type=file]", tmp_path / "plain.png")
    expect(page.locator(".toast-wrap")).to_contain_text("does not tell how it was made")


def test_enter_draws_and_a_seed_that_is_typed_is_taken(page, server):
    fill(page, prompt=PROMPT, steps=4, seed=77)
    page.press("#prompt textarea", "Enter")
    assert "seed 77;" in status(page, "saved")
    again = draw(page, prompt="a blue square")
    assert read_settings(server[1] / again)["seed"] == 77
    page.get_by_label("random").check()
    assert read_settings(server[1] / draw(page))["seed"] != 77


def test_what_is_seen_is_what_is_sent_on(page, server):
    first = draw(page, prompt="a red circle", steps=4)
    draw(page, prompt="a blue square")
    page.locator("#gallery button").nth(1).click()
    status(page, "a red circle · DDIM, 4 steps")
    shown(page, "preview", first)
    page.click("#reuse")
    expect(page.locator("#prompt textarea")).to_have_value("a red circle")
    newest = draw(page, prompt="a green heart")  # while the first one is still chosen
    page.click("#to_picture")
    shown(page, "preview", newest)
    shown(page, "picture", newest)


def test_a_picture_is_downloaded_with_its_settings_and_the_folder_is_not_served(page, server, tmp_path):
    name = draw(page, prompt="a red circle", steps=4)
    (tmp_path / name).write_bytes(page.request.get(shown(page, "preview", name)).body())
    assert read_settings(tmp_path / name) == read_settings(server[1] / name)
    assert page.request.get(f"{server[0]}/gradio_api/file={server[1] / name}").status == 403


@pytest.fixture
def busy(browser, server):
    """Another page, which has drawn one picture and now draws another for a while."""
    other = browser.new_page()
    other.set_default_timeout(30_000)
    other.goto(server[0])
    other.wait_for_selector("#draw")
    draw(other, prompt="a green heart", steps=4)
    fill(other, **LONG)
    other.click("#draw")
    status(other, r"step \d+ of 250")
    yield other
    other.close()


def test_another_tab_waits_and_sees_nothing_of_the_first(page, server, busy):
    fill(page, prompt="a red circle", steps=4)
    page.click("#draw")
    status(page, "waiting: one is before you")
    assert page.locator("#preview img").count() == 0
    saved = next(path for path in server[1].glob("*.png") if read_settings(path)["prompt"] == "a green heart")
    page.set_input_files("#restore input[type=file]", saved)  # all else is answered meanwhile
    expect(page.locator("#prompt textarea")).to_have_value("a green heart")
    status(page, "waiting: one is before you")
    busy.click("#cancel")
    status(busy, "cancelled")
    status(page, "saved")
    for each, prompt in ((page, "a red circle"), (busy, "a green heart")):
        expect(each.locator("#gallery img")).to_have_count(1)
        expect(each.locator("#gallery")).to_contain_text(prompt)


def test_one_who_waits_can_cancel(page, server, busy):
    there = len(list(server[1].glob("*.png")))
    fill(page, prompt="a red circle", steps=4)
    page.click("#draw")
    status(page, "waiting")
    page.click("#cancel")
    status(page, "cancelled")
    busy.click("#cancel")
    status(busy, "cancelled")
    draw(page)
    assert len(list(server[1].glob("*.png"))) == there + 1


def test_what_the_model_does_not_know_is_told(page):
    draw(page, prompt="a dragon above a blue dragon", steps=4)
    status(page, "the caption encoder does not know dragon")


def test_a_varied_picture_says_what_its_settings_need(page, server):
    draw(page, prompt="a blue square", steps=4)
    page.click("#to_picture")
    page.wait_for_selector("#picture img")
    name = draw(page, prompt="a green square")
    page.reload()
    page.wait_for_selector("#draw")
    page.set_input_files("#restore input[type=file]", server[1] / name)
    assert "the picture that it began from is not in it" in status(page, "are back")
    page.wait_for_selector("[role=tab][aria-selected=true]:has-text('From a picture')")


def test_it_fits_a_phone(browser, server):
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.set_default_timeout(30_000)
    phone.goto(server[0])
    phone.wait_for_selector("#draw")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("from text", "from a picture", "fill a hole"):  # none is in a menu
        assert phone.get_by_role("tab", name=name).is_visible()
    draw(phone, prompt="a red circle", steps=4)
    phone.locator("#gallery button").first.click()  # far below what it shows
    phone.wait_for_function(f"({INSIDE})(document.querySelector('#preview'))")
    phone.click("#to_picture")
    phone.wait_for_selector("#picture img")
    phone.wait_for_function(f"({INSIDE})(document.querySelector('[role=tab][aria-selected=true]'))")
    phone.close()


def test_what_is_refused_leaves_what_was_there(page, server):
    draw(page, prompt=PROMPT, steps=3, seed=5)
    expect(page.locator("#gallery button")).to_have_count(1)
    fill(page, steps=0)
    page.click("#draw")
    status(page, "steps 0")
    expect(page.locator("#cancel")).to_be_disabled()  # all that the press does is done
    assert page.locator("#gallery button").count() == 1
    assert page.input_value("#seed input") == "5" and page.locator("#preview img").is_visible()


def test_ctrl_c_while_it_draws_ends_it(browser, tmp_path):
    with served(tmp_path / "out") as (process, log):
        page = browser.new_page()
        page.goto(_address(process, log))
        page.wait_for_selector("#draw")
        fill(page, **LONG)
        page.click("#draw")
        page.wait_for_selector("#status progress[value]", timeout=60_000)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        page.close()
        said = log.read_text()
    assert "Traceback" not in said and "terminate" not in said
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"--host 127.0.0.1 --port {port}: .*; choose another port, or 0 for any"):
            web.main(["--port", str(port)])
