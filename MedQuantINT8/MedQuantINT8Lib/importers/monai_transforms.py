"""MONAI's transforms as the fields of model.json: before the network and after it."""

from .monai_postprocessing import translate_postprocessing
from .monai_preprocessing import Preprocessing, translate_preprocessing

__all__ = ["Preprocessing", "translate_postprocessing", "translate_preprocessing"]
