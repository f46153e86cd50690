"""Every checkpoint format to one state dict in CompVis' layout, and a model from it. Nothing a file says is run."""

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import load_state_dict
from ldm.checkpoint.load import load_model, load_weights

__all__ = ["CheckpointError", "load_model", "load_state_dict", "load_weights"]
