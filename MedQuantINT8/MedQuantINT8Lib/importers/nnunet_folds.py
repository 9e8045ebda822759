"""Which trainings of a result folder are there, and what nnU-Net's checkpoints say of themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, PackageError
from .checkpoints import read_checkpoint
from .fields import Fields, each, known, mapping, text, whole

_FINAL, _BEST, _LATEST = "checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth"
ALL = "all"
#: Parts of which nnU-Net makes the names of trainers that change how, but not what is trained: epochs, losses, optimizers,
#: learning rates, augmentation, sampling, and mirroring, which the checkpoint names by itself.
_SAME_NETWORK = (
    r"\d+epochs?|1epoch|NoMirroring|onlyMirror01|1500ep|DASegOrd0|DAOrd0|NoDA|DA5|DA5ord0|DA5Segord0|noDummy2DDA|warmup|CosAnneal|Adan|Adam"
    r"|VanillaAdam|\d+en\d|DiceLoss|DiceCELoss|noSmooth|Topk10Loss|LS01|DiceTopK10Loss|CELoss|probabilisticOversampling|\d{3}"
    r"|NoDeepSupervision|Benchmark|noDataLoading|BS8"
)
_KNOWN_TRAINER = re.compile(rf"nnUNet_?Trainer(?:_?(?:{_SAME_NETWORK}))*")
_BATCH_NORM = "nnUNetTrainerBN"


@dataclass(frozen=True)
class Training:
    """One trained fold.

    Attributes:
        fold: its number, or "all" for the training on every case.
        path: the checkpoint's file.
        configuration: what it was trained for, where the checkpoint says so.
        trainer: nnU-Net's class, where the checkpoint says so.
        mirrored: the axes along which nnU-Net mirrors scans when it segments; None where the training forbids it.
    """

    fold: int | str
    path: Path
    configuration: str | None
    trainer: str | None
    mirrored: list[int] | None

    @property
    def batch_norm(self) -> bool:
        """Whether the trainer builds the plans' network with batch normalization."""
        return self.trainer == _BATCH_NORM

    def notes(self) -> list[str]:
        """What a user has to know of this training."""
        found = []
        if self.path.name == _BEST:
            found.append(f"fold {self.fold} has no {_FINAL}: {_BEST} was taken, the state that did best while training")
        if self.mirrored:
            axes = ", ".join(map(str, self.mirrored))
            found.append(
                f"nnU-Net mirrors scans along its axes {axes} and averages {2 ** len(self.mirrored)} results; "
                "this is not done here, which is faster and slightly less accurate"
            )
        else:
            found.append("the training forbids mirroring, so nnU-Net does none either")
        if self.trainer is None:
            found.append("the checkpoint does not say which trainer made it: taken for nnU-Net's own")
        elif not (self.batch_norm or _KNOWN_TRAINER.fullmatch(self.trainer)):
            found.append(
                f"the trainer {self.trainer} is not one of nnU-Net's: its weights fit the network of the plans, but whether it changes "
                "preprocessing or activations cannot be seen; compare a scan with the original"
            )
        return found


def choose(folder: Path, wanted: Sequence[int | str] | None) -> tuple[list[Training], list[str]]:
    """The trainings to take, and what was left out.

    Args:
        wanted: fold numbers or "all"; None takes every numbered fold, as nnU-Net does, else the training on all cases.

    Raises:
        InputError: a fold that is not there.
        PackageError: none is there, or a checkpoint that is damaged or unfinished.
    """
    present = dict(sorted(_folds(folder).items(), key=lambda item: str(item[0])))
    notes = []
    if wanted is None:
        numbered = [fold for fold in present if fold != ALL]
        wanted = sorted(numbered, key=lambda fold: int(fold)) or list(present)
        if ALL in present and numbered:
            notes.append(f"fold_{ALL}, the training on every case, is there too: take it with --folds {ALL}")
    if absent := [fold for fold in wanted if fold not in present]:
        raise InputError(f"{folder.name} has no trained fold {absent[0]}.", f"It has: {known(map(str, present))}.")
    if not wanted:
        if unfinished := next(folder.glob(f"fold_*/{_LATEST}"), None):
            raise PackageError(
                f"{unfinished.parent.name} has only {_LATEST}: its training is unfinished.", "Finish it first."
            )
        raise PackageError(f"{folder.name} has no fold_N/{_FINAL}.", "Give the folder of a finished training.")
    return [_training(fold, present[fold]) for fold in dict.fromkeys(wanted)], notes


def _folds(folder: Path) -> dict[int | str, Path]:
    found: dict[int | str, Path] = {}
    for place in folder.glob("fold_*"):
        name = place.name[5:]
        path = next((place / file for file in (_FINAL, _BEST) if (place / file).is_file()), None)
        if path is not None and (name == ALL or (name.isascii() and name.isdigit())):
            found[ALL if name == ALL else int(name)] = path
    return found


def _training(fold: int | str, path: Path) -> Training:
    where = f"{path.parent.name}/{path.name}"
    # Weights, optimizer and logs are read when the network is made; they are large, and here only mapped.
    checkpoint: Any = read_checkpoint(path, mapped=True)
    read = Fields(checkpoint, where, "Get the checkpoint again.")
    arguments = Fields(read.get("init_args", mapping, {}), f"{where}: init_args")
    return Training(
        fold,
        path,
        arguments.get("configuration", text, None),
        read.get("trainer_name", text, None),
        read.get("inference_allowed_mirroring_axes", each(whole), None) or None,
    )
