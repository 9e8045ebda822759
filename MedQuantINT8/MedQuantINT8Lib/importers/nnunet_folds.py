"""The trained folds of a result folder, and what nnU-Net's checkpoints say of themselves."""

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
#: Parts of the names of nnU-Net's trainers that change how, but not what is trained: epochs, losses, optimizers,
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
        mirror_axes: the axes along which nnU-Net mirrors scans when it segments; None where the training forbids it.
    """

    fold: int | str
    path: Path
    configuration: str | None
    trainer: str | None
    mirror_axes: list[int] | None

    @property
    def batch_norm(self) -> bool:
        """Whether the trainer builds the plans' network with batch normalization."""
        return self.trainer == _BATCH_NORM

    def notes(self) -> list[str]:
        """Return the notes that a user has to read about this training."""
        notes = []
        if self.path.name == _BEST:
            notes.append(f"fold {self.fold} has no {_FINAL}: {_BEST} was taken, the state that did best while training")
        if self.mirror_axes:
            axes = ", ".join(map(str, self.mirror_axes))
            notes.append(
                f"nnU-Net mirrors scans along its axes {axes} and averages {2 ** len(self.mirror_axes)} results; here "
                "only when asked for (--mirroring), since it takes as many times as long"
            )
        else:
            notes.append("the training forbids mirroring, so nnU-Net does none either")
        if self.trainer is None:
            notes.append("the checkpoint does not say which trainer made it: taken for nnU-Net's own")
        elif not (self.batch_norm or _KNOWN_TRAINER.fullmatch(self.trainer)):
            notes.append(
                f"the trainer {self.trainer} is not one of nnU-Net's: its weights fit the network of the plans, but whether it changes "
                "preprocessing or activations cannot be seen; compare a scan with the original"
            )
        return notes


def choose(folder: Path, folds: Sequence[int | str] | None) -> tuple[list[Training], list[str]]:
    """Return the trainings to import, and notes on what was left out.

    Args:
        folds: fold numbers or "all"; None takes every numbered fold, as nnU-Net does, else the training on all cases.

    Raises:
        InputError: a fold that is not there.
        PackageError: none is there, or a checkpoint that is damaged or unfinished.
    """
    checkpoints = dict(sorted(_find_checkpoints(folder).items(), key=lambda item: str(item[0])))
    notes = []
    if folds is None:
        numbers = [fold for fold in checkpoints if fold != ALL]
        folds = sorted(numbers, key=lambda fold: int(fold)) or list(checkpoints)
        if ALL in checkpoints and numbers:
            notes.append(f"fold_{ALL}, the training on every case, is there too: take it with --folds {ALL}")
    if missing := [fold for fold in folds if fold not in checkpoints]:
        raise InputError(f"{folder.name} has no trained fold {missing[0]}.", f"It has: {known(map(str, checkpoints))}.")
    if not folds:
        if latest := next(folder.glob(f"fold_*/{_LATEST}"), None):
            raise PackageError(
                f"{latest.parent.name} has only {_LATEST}: its training is unfinished.", "Finish it first."
            )
        raise PackageError(f"{folder.name} has no fold_N/{_FINAL}.", "Give the folder of a finished training.")
    return [_read_training(fold, checkpoints[fold]) for fold in dict.fromkeys(folds)], notes


def _find_checkpoints(folder: Path) -> dict[int | str, Path]:
    checkpoints: dict[int | str, Path] = {}
    for fold_folder in folder.glob("fold_*"):
        name = fold_folder.name[5:]
        path = next((fold_folder / file for file in (_FINAL, _BEST) if (fold_folder / file).is_file()), None)
        if path is not None and (name == ALL or (name.isascii() and name.isdigit())):
            checkpoints[ALL if name == ALL else int(name)] = path
    return checkpoints


def _read_training(fold: int | str, path: Path) -> Training:
    where = f"{path.parent.name}/{path.name}"
    # Weights, optimizer and logs are read when the network is built; they are large, and here only mapped.
    checkpoint: Any = read_checkpoint(path, mapped=True)
    fields = Fields(checkpoint, where, "Get the checkpoint again.")
    arguments = Fields(fields.get("init_args", mapping, {}), f"{where}: init_args")
    return Training(
        fold,
        path,
        arguments.get("configuration", text, None),
        fields.get("trainer_name", text, None),
        fields.get("inference_allowed_mirroring_axes", each(whole), None) or None,
    )
