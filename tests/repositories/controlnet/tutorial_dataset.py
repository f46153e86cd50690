import numpy as np
from torch.utils.data import Dataset


class MyDataset(Dataset):
    """A coloured square where the hint has a white one."""

    def __len__(self):
        return 8

    def __getitem__(self, idx):
        rng = np.random.default_rng(idx)
        x, y = rng.integers(0, 32, 2)
        hint, target = np.zeros((64, 64, 3), np.float32), np.full((64, 64, 3), -1, np.float32)
        hint[y : y + 32, x : x + 32] = 1
        target[y : y + 32, x : x + 32] = rng.uniform(-1, 1, 3)
        return {"jpg": target, "txt": f"square number {idx}", "hint": hint}
