"""Every checkpoint format to one state dict in CompVis' layout, and a model from it. Nothing a file says is run."""

from ldm.checkpoint.digest import weights_sha256
from ldm.checkpoint.embeddings import load_embeddings, save_embeddings
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import Checkpoint, load_checkpoint, load_state_dict
from ldm.checkpoint.identify import config_of, identify
from ldm.checkpoint.load import load_model, load_partly, load_weights
from ldm.checkpoint.recognise import config_path
from ldm.checkpoint.save import save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "config_of",
    "config_path",
    "identify",
    "load_checkpoint",
    "load_embeddings",
    "load_model",
    "load_partly",
    "load_state_dict",
    "load_weights",
    "save_checkpoint",
    "save_embeddings",
    "weights_sha256",
]
