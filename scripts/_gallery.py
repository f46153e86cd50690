"""Where a run's pictures go."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _trajectory


class Gallery:
    """Where a run's pictures go: OUTDIR/samples/00000.png, counting on from what is there, and OUTDIR/grid-0000.png.

    With `folder=""` they go to OUTDIR itself; `prefix` and `digits` are of their names. Used as a context, it tells
    what there is when the run is interrupted.
    """

    def __init__(
        self,
        outdir: str | Path,
        *,
        save: bool = True,
        grid: bool = True,
        folder: str = "samples",
        prefix: str = "",
        digits: int = 5,
        twins: bool = False,
    ):
        """Make the folders at once, so that an unwritable one shows before a model is loaded. `twins`: each picture's
        settings are also a .json beside it."""
        importlib.import_module("PIL")  # likewise
        self.samples = Path(outdir, folder)
        self.samples.mkdir(parents=True, exist_ok=True)
        for place in [self.samples] * save + [Path(outdir)] * grid:
            check_writable(place, "--outdir")
        self._outdir, self._twins, self.count = Path(outdir), twins, 0
        self._pictures = _Numbered(self.samples, prefix, digits) if save else None
        self._grids = _Numbered(Path(outdir), "grid-", 4) if grid else None
        self._kept: list[tuple[Any, str]] = []
        self._steps: Path | None = None

    def add(
        self,
        images,
        settings: Sequence[dict[str, Any]],
        name: str = "",
        *,
        caption: str = "",
        steps: Sequence[tuple[str, Any]] = (),
    ) -> list[Path]:
        """Save a batch of images, (B, 3, H, W) in [-1, 1] or PIL's, with the settings of each; as NAME.png, NAME-1.png,
        … if there is a name. In the grid stands their caption, by default the prompt. `steps`: `Session.steps`. Returns
        their paths."""
        paths = []
        frames = [(label, _pil(looks)) for label, looks in steps]
        for k, (picture, made) in enumerate(zip(_pil(images), settings, strict=True)):
            made = {**made, "width": picture.width, "height": picture.height}
            path = Path(f"{self.count:05}.png")
            if self._pictures:
                path = self._pictures.save(picture, made, name)
                if self._twins:
                    told = json.dumps(made, indent=1, ensure_ascii=False)
                    path.with_suffix(".json").write_text(f"{told}\n", encoding="utf-8")
            if frames:
                self._steps = self._outdir / "steps"
                labels, looks = zip(*((label, pictures[k]) for label, pictures in frames), strict=True)
                _trajectory.save(self._steps, path.stem, labels, looks)
            if self._grids:
                self._kept.append((picture, caption or made["prompt"]))
            paths.append(path)
            self.count += 1
        return paths

    def show(self, picture, caption: str) -> None:
        """A picture, PIL's, that is only for the grid."""
        if self._grids:
            self._kept.append((picture, caption))

    def finish(self, columns: int) -> str:
        """Save the grid, with captions where the prompts differ; returns a line that says where all is."""
        from ldm.image import grid

        places = [f"in {self.samples}"] if self._pictures else []
        if self._grids:
            pictures, prompts = zip(*self._kept, strict=True)
            sheet = grid(pictures, columns, prompts if len(set(prompts)) > 1 else None)
            places.append(f"side by side in {self._grids.save(sheet)}")
        if self._steps:
            places.append(f"their steps in {self._steps}")
        return f"{_pictures(self.count)}: {', '.join(places) or 'none was saved'}"

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(f"{_pictures(self.count)} finished; {self.samples} has what is saved") from None


def _pil(images) -> Sequence[Any]:
    from ldm.image import to_pil

    return to_pil(images) if hasattr(images, "ndim") else images


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


class _Numbered:
    """Files PREFIX00000.png, PREFIX00001.png, …: each after the last one there, none written over."""

    def __init__(self, folder: Path, prefix: str, digits: int):
        self.folder, self.prefix, self.digits = folder, prefix, digits
        names = (path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.png"))
        self.next = max((int(name) for name in names if name.isdecimal()), default=-1) + 1

    def save(self, picture, settings: dict[str, Any] | None = None, name: str = "") -> Path:
        """`name`: what to call the file instead; a number behind it where that is taken."""
        from ldm.image import save_png

        for path in self._named(name) if name else self._counted():
            with contextlib.suppress(FileExistsError):  # another run writes here too: take the next number
                save_png(picture, path, settings)
                return path

    def _counted(self) -> Iterator[Path]:
        while True:
            self.next += 1
            yield self.folder / f"{self.prefix}{self.next - 1:0{self.digits}}.png"

    def _named(self, name: str) -> Iterator[Path]:
        yield self.folder / f"{name}.png"
        yield from (self.folder / f"{name}-{k}.png" for k in itertools.count(1))


def png_to_write(name: str, flag: str) -> Path:
    """The path of a PNG that a flag names, in a folder that is there; an error where it cannot be written."""
    path = Path(name)
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"{flag} {name} is no PNG's name; give one that ends in .png, such as {path.with_suffix('.png')}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path.parent, flag)
    return path


def check_writable(folder: Path, flag: str) -> None:
    """OSError where no file can be made in a folder. Tried, as permissions say nothing of read-only disks."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        said = f"{flag}: no file can be made in {str(folder)!r} ({error.strerror}); give another folder"
        raise type(error)(said) from error
