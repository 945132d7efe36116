"""Sparse stays sparse: SRigL for Hugging Face transformers.

Importing this package registers the condensed format with transformers, so that ``from_pretrained`` loads it.
"""

from hf_srigl.config import SRigLConfig
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.model.report import sparsity_report
from hf_srigl.model.surgery import densify, sparsify
from hf_srigl.training.callback import SRigLCallback
from hf_srigl.training.srigl import SRigL
from hf_srigl.training.trainer import SparseTrainer, SRigLTrainerMixin

__all__ = [
    "CondensedLinear",
    "SRigL",
    "SRigLCallback",
    "SRigLConfig",
    "SRigLTrainerMixin",
    "SparseTrainer",
    "densify",
    "sparsify",
    "sparsity_report",
]

__version__ = "0.1.0"
