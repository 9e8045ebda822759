"""The study's two networks that are written here, of a few channels."""

from __future__ import annotations

import torch

from MedQuantINT8Lib.importers.networks.transunet import TransUNet
from MedQuantINT8Lib.importers.networks.unest import UNesT


def small_transunet():
    torch.manual_seed(0)
    return TransUNet(2, 3, (32, 16, 16), features=(4, 8, 16), hidden=24, layers=2, heads=3)


def small_unest():
    torch.manual_seed(0)
    return UNesT(2, 3, (32, 32, 64), widths=(8, 16, 32), heads=(2, 2, 4), layers=(1, 1, 2), features=(4, 4))


SMALL = {"transunet": (small_transunet, (32, 16, 16)), "unest": (small_unest, (32, 32, 64))}
