"""Many pictures: rows of a file in, pictures and a manifest out, by one process or a Ray cluster, and resumable.

    rows = read_rows("prompts.jsonl", base_seed=42)
    with Store("out", rows, settings) as store:
        print(run(store, make_drawer, batch_size=16, engine=Ray(workers=8, num_gpus=1)))

A row's picture depends on the row and the settings alone: its seed comes from the base seed and the row's index, so
neither engine nor workers, batch size, or the order in which they are drawn is seen in it, but for rounding.
"""

from ldm.bulk.draw import Drawer, ModelError
from ldm.bulk.engines import Ray, local
from ldm.bulk.job import Summary, run
from ldm.bulk.rows import BadRow, Row, read_rows, row_seed
from ldm.bulk.store import Store

__all__ = ["BadRow", "Drawer", "ModelError", "Ray", "Row", "Store", "Summary", "local", "read_rows", "row_seed", "run"]
