"""The translation of MONAI's transforms before and after the network to the fields of model.json."""

from .monai_postprocessing import translate_postprocessing
from .monai_preprocessing import Preprocessing, translate_preprocessing

__all__ = ["Preprocessing", "translate_postprocessing", "translate_preprocessing"]
