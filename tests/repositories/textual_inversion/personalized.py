import numpy as np
from torch.utils.data import Dataset

imagenet_templates_small = ["a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}"]


class PersonalizedBase(Dataset):
    """One thing, a red square on grey, in several places, with captions that name it by its placeholder."""

    def __init__(self, placeholder_token="*"):
        self.placeholder_token = placeholder_token

    def __len__(self):
        return 8

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        x, y = rng.integers(0, 24, 2)
        image = np.zeros((64, 64, 3), np.float32)
        image[y : y + 40, x : x + 40] = 0.9, -0.9, -0.9
        text = imagenet_templates_small[i % len(imagenet_templates_small)].format(self.placeholder_token)
        return {"image": image, "caption": text}
