"""What weights from elsewhere are, of the options that name them: their file, their net and their origin's convention."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.base.layout import CONFIG
from pipeline.base.words import weights_meaning
from pipeline.data.conventions import CONVENTIONS, OURS, PILLOW, TORCHVISION, Convention
from pipeline.data.storage import open_dataset
from pipeline.evaluation.datasets import check_class_count
from pipeline.evaluation.exports import ExportedNet, exported_net, is_older_export
from pipeline.evaluation.foreign import WeightsFile, check_there
from pipeline.evaluation.published import is_published, published, published_as
from pipeline.models.architecture import parse_arch

ORIGINS = ", ".join(CONVENTIONS)


def weights_from_elsewhere(place: str, args: Namespace) -> WeightsFile:
    """The weights `torchvision:NET`, which may be downloaded, or those of a file. args: of `evaluate_options`.

    Raises UserError where the options leave open how the weights' origin prepares its images, and where they disagree.
    """
    _check_file(place)
    if args.data is None:
        raise UserError("weights from elsewhere need --data: say what to test them on")
    if is_published(place):
        return _of_torchvision(place, args)
    file = Path(place)
    if not file.exists() and (known := weights_meaning(place, "--preprocessing")):
        raise UserError(f"--weights is '{place}': {known}")
    check_there(file)
    if (exported := exported_net(file)) is not None:
        return _of_export(file, exported, args)
    if args.arch is None:
        raise UserError("a file of weights needs --arch: say which net it is")
    convention = _convention(place, parse_arch(args.arch).family, args)
    if convention is OURS:
        _check_stated(file, args)
    return _weights_file(file, args.arch, _adjusted(convention, args), args)


def _of_export(file: Path, exported: ExportedNet, args: Namespace) -> WeightsFile:
    """A file that `pipeline.export` wrote: it says itself what its net needs. Raises UserError where the options contradict."""
    stated = {
        "preprocessing": OURS.name,
        "arch": exported.arch,
        "stride": exported.stride,
        "short_side": exported.short_side,
        "crop": exported.crop,
    }
    for name, value in stated.items():
        if (given := getattr(args, name)) not in (None, value):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{file} is an export that states {option} {value}, and not {given}: leave out {option}")
    own = Namespace(**{**vars(args), **stated})
    return replace(_weights_file(file, exported.arch, _adjusted(OURS, own), own), exported=exported)


def _check_stated(file: Path, args: Namespace) -> None:
    """Raise UserError where a run's net was exported by others, or before exports said what it needs, and the options do not.

    The images of CIFAR nets are not resized, but by runs such as the demo's: of those only a file that is known to be an
    export of a run needs the sizes.
    """
    architecture = parse_arch(args.arch)
    resized = architecture.family == "imagenet" or is_older_export(file)
    needed = ["short_side", "crop"] if resized else []
    needed += ["stride"] if architecture.block == "bottleneck" else []
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        raise UserError(
            f"{file} does not say {_listed(missing)} of its net, as exports of now do: give {_listed(missing)} as the run's "
            "config had them, or export the run again"
        )


def _listed(options: Sequence[str]) -> str:
    *others, last = options
    return f"{', '.join(others)} and {last}" if others else last


def _check_file(place: str) -> None:
    """Raise UserError where `place` is a folder."""
    if (Path(place) / CONFIG).is_file():
        raise UserError(
            f"{place} is a run folder, and --weights takes weights from elsewhere: give it without --weights"
        )
    if Path(place).is_dir():
        raise UserError(f"{place} is a folder: give the file of weights in it")


def _of_torchvision(place: str, args: Namespace) -> WeightsFile:
    named = published(place)
    if args.arch not in (None, named.arch):
        raise UserError(f"{place} is no {args.arch}: leave out --arch, which the name gives")
    if args.preprocessing not in (None, TORCHVISION.name):
        raise UserError(f"{place} wants torchvision's preprocessing: leave out --preprocessing {args.preprocessing}")
    convention = _adjusted(named.convention, args)
    if not named.is_here:  # a download for nothing is refused before it begins
        check_class_count(place, named.classes, open_dataset(args.data), args.data)
    return replace(_weights_file(named.fetch(), named.arch, convention, args), published=named.name)


def _weights_file(file: Path, arch: str, convention: Convention, args: Namespace) -> WeightsFile:
    return WeightsFile(
        file=file,
        arch=arch,
        data=args.data,
        key=args.weights_key,
        convention=convention,
        shortcut=args.shortcut,
        stride=args.stride,
        short_side=args.short_side,
        crop=args.crop,
    )


def _convention(place: str, family: str, args: Namespace) -> Convention:
    """The convention that `--preprocessing` names. CIFAR nets need none: their images are not resized."""
    if args.preprocessing is None:
        if family == "cifar" and args.mean is not None and args.std is not None:
            return OURS
        further = ", or --mean and --std" if family == "cifar" else ""
        raise UserError(
            f"how the origin of {place} prepares its images is not known: give --preprocessing with one of {ORIGINS}{further}"
        )
    convention = CONVENTIONS[args.preprocessing]
    if convention is TORCHVISION and (known := published_as(Path(place))) is not None:
        convention = known.convention  # the file's name says which weights they are
    if convention.short_side is None and family == "imagenet" and None in (args.short_side, args.interpolation):
        raise UserError(
            f"{convention.name}'s nets differ in how they want their images: give --short-side, crop / crop_pct rounded down, "
            "and --interpolation, both as the net's pretrained_cfg has them"
        )
    return convention


def _adjusted(convention: Convention, args: Namespace) -> Convention:
    """The convention with what the options say otherwise."""
    if args.mean is not None:
        convention = replace(convention, mean=args.mean)
    if args.std is not None:
        if convention.mean is None:
            raise UserError("--std needs --mean: give both on the 0..255 scale")
        convention = replace(convention, std=args.std)
    if args.interpolation is not None:
        resizing = convention.resizing
        if resizing is None or resizing.resampling not in PILLOW.values():
            raise UserError(f"--interpolation does not go with {convention.name}, which always resizes in one way")
        convention = replace(convention, resizing=replace(resizing, resampling=PILLOW[args.interpolation]))
    return convention
