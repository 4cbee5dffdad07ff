"""Stock Ultralytics training that keeps the architecture of a `.pt`. Needs only ultralytics: copy this file.

    from ultralytics import YOLO
    YOLO("best.pt").train(trainer=KeepArchitecture, data="mine.yaml", epochs=50)

The stock trainer builds a new network from the YAML inside the `.pt` and copies what fits. Our exports carry
a YAML that says everything and need no help, except for the few networks that a YAML cannot say; the export
prints which. For those, and for any other `.pt` whose modules were changed, this trains the loaded network.
"""

from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel


class KeepArchitecture(DetectionTrainer):
    """Trains the very network that was loaded; the number of classes in the data must be the network's."""

    def get_model(
        self, cfg: object = None, weights: DetectionModel | None = None, verbose: bool = True
    ) -> DetectionModel:
        if weights is None:
            raise ValueError(
                "KeepArchitecture trains a loaded network: start from a .pt, without pretrained=False"
            )
        classes = weights.model[-1].nc
        if classes != self.data["nc"]:
            raise ValueError(f"the network has {classes} classes, the data {self.data['nc']}")
        weights.names = self.data["names"]
        return weights
