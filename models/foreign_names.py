"""What others call our layers and classes.

A network says it in two attributes, neither of which it needs:

    aliases = [(r"layer1\\.(\\d+)\\.conv1\\.(.*)", r"backbone.stages.0.\\1.branch.0.conv.\\2"), ...]
    class_rows = {"cls.predict": ClassRows()}  # layers that have rows for classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml

Alias = tuple[str, str]  # a regular expression for the whole of a foreign name, and ours for it


@dataclass(frozen=True)
class ClassRows:
    """How the outputs of a layer hang on classes: any number of times (once an anchor) all of them.

    before: kinds that are no class and come first, such as the background. inner: rows of each, 4 where it
    has boxes of its own.
    """

    before: int = 0
    inner: int = 1

    def classes(self, rows: int, times: int) -> int:
        """How many classes so many rows are for; 0 where they do not come out whole."""
        return 0 if rows % (times * self.inner) else rows // (times * self.inner) - self.before

    def times(self, rows: int, classes: int) -> int:
        """How often all of them come."""
        return rows // ((self.before + classes) * self.inner)


# Names of classes ------------------------------------------------------------------------------------------


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """Our number of a class -> theirs, where the names are the same, whatever their case and blanks."""
    known: dict[str, int] = {}
    for i, name in enumerate(theirs):
        known.setdefault(_bare(name), i)
    exact = {name: i for i, name in reversed(list(enumerate(theirs)))}
    found = {}
    for i, name in enumerate(ours):
        number = exact.get(name, known.get(_bare(name)))
        if number is not None:
            found[i] = number
    return found


def _bare(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()


def published_names(count: int) -> list[str]:
    """The classes of COCO or ImageNet, where a file without names has as many; [] for any other number.

    torchvision counts 91 in COCO, the background among them; 90 where that is counted apart.
    """
    if count == 80:
        package = find_spec("ultralytics")  # located, not imported
        for root in (package and package.submodule_search_locations) or ():
            said = yaml.safe_load((Path(root) / "cfg/datasets/coco.yaml").read_text(encoding="utf-8"))
            return [str(name) for name in said["names"].values()]
    if count in (90, 91, 1000):
        from torchvision.models import ResNet18_Weights
        from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

        meta = (
            ResNet18_Weights.IMAGENET1K_V1 if count == 1000 else RetinaNet_ResNet50_FPN_Weights.COCO_V1
        ).meta
        return list(meta["categories"])[-count:]
    return []


# torchvision's names of what our backbones, necks and heads have -----------------------------------------


def backbones(ours: str = "backbone.") -> list[Alias]:
    """Of any of them, which may be a detector's body; ours is called `ours`."""
    return [*resnet(ours), *regnet(ours), *mobilenet(ours), *shufflenet(ours)]


def resnet(ours: str) -> list[Alias]:
    """Of the four stages of a ResNet. Its stem is another than ours."""
    found = []
    for stage in range(4):
        theirs, here = rf"(?:.*\.)?layer{stage + 1}\.(\d+)", rf"{ours}stages.{stage}.\1"
        for i, branch in enumerate((0, 1, 3)):  # 2 is squeeze-and-excitation, or nothing
            found += [
                (rf"{theirs}\.conv{i + 1}\.(.*)", rf"{here}.branch.{branch}.conv.\2"),
                (rf"{theirs}\.bn{i + 1}\.(.*)", rf"{here}.branch.{branch}.norm.\2"),
            ]
        for i, layer in enumerate(("conv", "norm")):
            found.append((rf"{theirs}\.downsample\.{i}\.(.*)", rf"{here}.shortcut.{layer}.\2"))
    return found


def fpn(ours: str = "neck.") -> list[Alias]:
    """Of a feature pyramid and its two further levels."""
    return [
        (r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(.*)", rf"{ours}laterals.\1.\2"),
        (r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(.*)", rf"{ours}outputs.\1.\2"),
        (r"backbone\.fpn\.extra_blocks\.p6\.(.*)", rf"{ours}further.0.\1"),
        (r"backbone\.fpn\.extra_blocks\.p7\.(.*)", rf"{ours}further.1.\1"),
    ]


def retina_head() -> list[Alias]:
    """Of RetinaNet's two towers."""
    return [
        (r"head\.classification_head\.conv\.(\d+)\.0\.(.*)", r"cls.blocks.\1.conv.\2"),
        (r"head\.classification_head\.cls_logits\.(.*)", r"cls.predict.\1"),
        (r"head\.regression_head\.conv\.(\d+)\.0\.(.*)", r"box.blocks.\1.conv.\2"),
        (r"head\.regression_head\.bbox_reg\.(.*)", r"box.predict.\1"),
    ]


def faster_head() -> list[Alias]:
    """Of the two stages of Faster R-CNN, with two linear layers, or four convolutions and one."""
    box = r"roi_heads\.box_head"
    return [
        (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.conv.\1"),  # of files before torchvision 0.13
        (r"rpn\.head\.conv\.(\d+)\.0\.(.*)", r"rpn.head.conv.\1.conv.\2"),
        (rf"{box}\.fc6\.(.*)", r"roi_heads.box_head.blocks.0.linear.\1"),
        (rf"{box}\.fc7\.(.*)", r"roi_heads.box_head.blocks.1.linear.\1"),
        (rf"{box}\.([0-3])\.0\.(.*)", r"roi_heads.box_head.convs.\1.conv.\2"),
        (rf"{box}\.([0-3])\.1\.(.*)", r"roi_heads.box_head.convs.\1.norm.\2"),
        (rf"{box}\.5\.(.*)", r"roi_heads.box_head.blocks.0.linear.\1"),
    ]


def regnet(ours: str) -> list[Alias]:
    """Of a RegNet."""
    found = [(r"stem\.0\.(.*)", rf"{ours}stem.conv.\1"), (r"stem\.1\.(.*)", rf"{ours}stem.norm.\1")]
    for stage in range(4):
        theirs, here = (
            rf"trunk_output\.block{stage + 1}\.block{stage + 1}-(\d+)",
            rf"{ours}stages.{stage}.\1",
        )
        for i, layer in enumerate(("conv", "norm")):
            found.append((rf"{theirs}\.proj\.{i}\.(.*)", rf"{here}.shortcut.{layer}.\2"))
            for letter, branch in (("a", 0), ("b", 1), ("c", 3)):
                found.append((rf"{theirs}\.f\.{letter}\.{i}\.(.*)", rf"{here}.branch.{branch}.{layer}.\2"))
        for fc, layer in ((1, "reduce"), (2, "expand")):
            found.append((rf"{theirs}\.f\.se\.fc{fc}\.(.*)", rf"{here}.branch.2.{layer}.\2"))
    return found


def mobilenet(ours: str) -> list[Alias]:
    """Of MobileNetV2, and of V3 as `mobilenet_v3_large` has it."""
    features = r"(?:.*\.)?features"
    found = [
        (rf"{features}\.0\.0\.(.*)", rf"{ours}stem.conv.\1"),
        (rf"{features}\.0\.1\.(.*)", rf"{ours}stem.norm.\1"),
        (rf"{features}\.16\.0\.(.*)", rf"{ours}tail.conv.\1"),  # V2's 16 is a block
        (rf"{features}\.16\.1\.(.*)", rf"{ours}tail.norm.\1"),
    ]
    for theirs, depths in (("conv", (1, 2, 3, 4, 3, 3, 1)), ("block", (1, 2, 3, 4, 2, 3))):
        places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
        for number, (stage, block) in enumerate(places, 1):
            here = f"{ours}stages.{stage}.{block}"
            layers = ["expand", "depthwise"] if number > 1 else ["depthwise"]
            for i, layer in enumerate(layers):
                for j, what in enumerate(("conv", "norm")):
                    found.append(
                        (rf"{features}\.{number}\.{theirs}\.{i}\.{j}\.(.*)", rf"{here}.{layer}.{what}.\1")
                    )
            last = len(layers)
            if theirs == "conv":  # the last convolution and its norm are not together
                ends = [(f"{last}", "conv"), (f"{last + 1}", "norm")]
            else:  # with squeeze-and-excitation, where there is any, before them
                ends = [(rf"[{last}{last + 1}]\.{j}", what) for j, what in enumerate(("conv", "norm"))]
                for fc, layer in ((1, "reduce"), (2, "expand")):
                    found.append(
                        (rf"{features}\.{number}\.block\.2\.fc{fc}\.(.*)", rf"{here}.squeeze.{layer}.\1")
                    )
            for name, what in ends:
                found.append((rf"{features}\.{number}\.{theirs}\.{name}\.(.*)", rf"{here}.project.{what}.\1"))
    return found


def shufflenet(ours: str) -> list[Alias]:
    """Of a ShuffleNet v2."""
    body = r"(?:.*\.)?"
    found = [
        (rf"{body}conv1\.0\.(.*)", rf"{ours}stem.conv.\1"),
        (rf"{body}conv1\.1\.(.*)", rf"{ours}stem.norm.\1"),
        (r"conv5\.0\.(.*)", r"last.conv.\1"),
        (r"conv5\.1\.(.*)", r"last.norm.\1"),
    ]
    layers = [("branch1", "side.0", 0), ("branch1", "side.1", 2), ("branch2", "branch.first", 0)]
    layers += [("branch2", "branch.depthwise", 3), ("branch2", "branch.last", 5)]
    for stage in range(3):
        theirs, here = rf"{body}stage{stage + 2}\.(\d+)", rf"{ours}stages.{stage}.\1"
        for branch, layer, i in layers:
            for j, kind in enumerate(("conv", "norm")):
                found.append((rf"{theirs}\.{branch}\.{i + j}\.(.*)", rf"{here}.{layer}.{kind}.\2"))
    return found
