"""What the tests of bulk sampling share: jobs of the bundled model, what came of them, and processes to be killed."""

import io
import json
import tarfile
from pathlib import Path

import _bulk
import _config
import numpy as np
import sample_bulk
from PIL import Image

from ldm.bulk import Store, run

WORDS = ("red circle", "blue square", "green star", "pink heart", "black ring", "yellow cross", "orange triangle")


def prompts(path, count):
    """A file of `count` rows, of two sizes and two numbers of steps."""
    told = [
        {"prompt": f"a {WORDS[k % 7]}", "steps": 2 + (k % 5 == 0), **({"width": 80} if k % 4 == 3 else {})}
        for k in range(count)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in told), encoding="utf-8")
    return path


def job(outdir, file, *flags, engine, batch_size=8):
    """What sample_bulk.py does with these flags, by another engine."""
    opt = sample_bulk.parse(["--from-file", str(file), "--outdir", str(outdir), "--precision", "full", *flags])
    session = _bulk.opened(opt)
    shape = _config.latent_shape(session.config, opt.H, opt.W, opt.C, opt.f)
    made = {"format": opt.format, "shard_size": opt.shard_size, "manifest": opt.manifest, "overwrite": opt.overwrite}
    with Store(opt.outdir, _bulk.rows(opt, session), _bulk.settings(opt, session, shape), **made) as store:
        check = _bulk.checker(opt, session)
        return run(store, _bulk.Drawing(opt), batch_size=batch_size, engine=engine, check=check, progress=False)


def manifest(outdir):
    lines = (Path(outdir) / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["row"]: record for record in map(json.loads, lines)}


def picture_bytes(outdir, record):
    path = Path(outdir) / record["file"]
    if "member" not in record:
        return path.read_bytes()
    with tarfile.open(path) as tar:
        return tar.extractfile(record["member"]).read()


def pictures(outdir):
    """{row: its pixels}, by the manifest."""
    found = {row: picture_bytes(outdir, record) for row, record in manifest(outdir).items()}
    return {row: np.asarray(Image.open(io.BytesIO(png))).astype(int) for row, png in found.items()}


def files(outdir):
    """All pictures and shards that are there, by name; and what is half-written."""
    outdir = Path(outdir)
    there = {
        str(path.relative_to(outdir)) for place in ("pictures", "shards") for path in outdir.glob(f"{place}/**/*.*")
    }
    return there, sorted(outdir.rglob("*.part"))
