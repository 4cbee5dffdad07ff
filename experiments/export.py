"""The step and the command `export`: trained architectures for other tools, each re-loaded and compared.

The command answers mistakes before it imports torch.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.arch_file import ArchFile, data_of, handover_experiment, open_arch_file, top_files
from experiments.run_folder import RunFolder
from models.networks import open_any_space
from utils.errors import UserError
from utils.report.outcomes import best_weights
from utils.report.results import extend_top
from utils.report.runs import quality_of
from utils.sides import Sides, shown

if TYPE_CHECKING:
    from experiments.job import Job
    from models.exported import Exported


def export_arch(
    arch_file: Path,
    format: str,
    *,
    weights: Path | None = None,
    out: Path | None = None,
    imgsz: Sides | None = None,
    threads: int = 1,
    data: str | None = None,
    space_file: Path | None = None,
) -> Exported:
    """Write a trained architecture for other tools; see models/export.py for the formats and what is checked.

    weights: by default those of its trial. out: by default beside the architecture file.
    data: where the weights are a supernet's, what the slice's batch norm is re-estimated on; by default what
    the file says it is for.
    UserError when `out` exists, or when the weights are of another network.
    """
    found = open_arch_file(arch_file, space_file)
    source = weights or found.weights()
    if out is not None:
        _check_new(out)

    from experiments.trained import NEEDS_IMAGES, trained
    from models.export import check_format, export, file_name
    from models.weights import read_weights

    space = open_any_space(found.space, nc=1)  # whatever the classes
    check_format(format, space)
    if imgsz is not None:
        space.cost(found.arch, imgsz)  # says which sizes its strides allow
    path = out or arch_file.with_name(file_name(arch_file.stem, format, space))
    _check_new(path)
    file, around = read_weights(source), None
    if file.meta.get("supernet"):
        if not (data or found.settings().get("data")):
            raise UserError(NEEDS_IMAGES.format(source))
        overrides = [f"data={json.dumps(data)}"] if data else []
        overrides += [f"imgsz={shown(imgsz)}"] if imgsz else []
        exp = handover_experiment(found, overrides, name="export")
        around = found, exp, data_of(found, exp)
    size = imgsz or found.settings().get("imgsz") or file.imgsz
    if size is None:
        raise UserError(f"neither {arch_file} nor its weights say the image size; give --imgsz PIXELS or HxW")
    names = around[2].names if around else file.names or _names_of_data(found)
    space = open_any_space(found.space, nc=file.nc or len(names))
    detector, _ = trained(space, found.arch, source, names, around)
    exported = export(
        detector.cpu(),
        path,
        format,
        space=space,
        arch=found.arch,
        imgsz=size,
        names=names,
        data=data or found.record.get("data"),
        threads=threads,
    )
    print(exported)
    return exported


def _check_new(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists and is never overwritten; give another name by --out")


def _names_of_data(found: ArchFile) -> list[str]:
    """Class names where the weight file does not tell them."""
    if not found.settings().get("data"):
        raise UserError(f"neither the weights nor {found.path} say what the classes are called")
    return data_of(found, handover_experiment(found, [], name="export")).names


def weights_of(job: Job, found: ArchFile) -> Path:
    """The best weights of one of the top k. UserError when it has none."""
    number = found.record["trial"]
    best = best_weights(job.run.path, number, quality_of(job.exp.search.objectives))
    if best is None:
        raise UserError(
            f"{found.path} has no weights in {job.run.path}: {job.run.trial_dir(number)} is empty"
        )
    return best


def export_top(run: RunFolder) -> None:
    """The top k with their best weights for other tools, each checked: `top/N.onnx`, and `top/N.pt` for
    Ultralytics or, of other networks, `top/N.pt2` for plain torch; of a MobileNetV3 its backbone for
    torchvision, `top/N.torchvision.pth`."""
    from experiments.job import job_of
    from experiments.trained import trained
    from models.export import export, file_name

    job, said = job_of(str(run.path)), set[str]()
    for rank, found in top_files(run):
        weights = weights_of(job, found)
        detector, _ = trained(job.space, found.arch, weights, job.dataset.names)
        files = {}
        for format in (f for f in ("pt", "onnx", "torchvision") if f in job.space.formats):
            path = found.path.with_name(file_name(found.path.stem, format, job.space))
            path.unlink(missing_ok=True)  # an earlier export of this same run
            exported = export(
                detector,
                path,
                format,
                space=job.space,
                arch=found.arch,
                imgsz=job.side(found.arch),
                names=job.dataset.names,
                data=job.exp.data,
            )
            print(replace(exported, notes=[note for note in exported.notes if note not in said]))
            said.update(exported.notes)
            files[format] = {"file": path.name, "max_difference": exported.max_difference, **exported.values}
        extend_top(run.path, rank, exported={"weights": str(weights.relative_to(run.path)), **files})
