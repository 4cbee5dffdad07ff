"""Every detection YAML that comes with Ultralytics as a space: does it parse, what varies, what does it cost?

    python experiments/benchmarks/stock_yamls.py

Prints a table in Markdown. A file of several scales stands at its first. GFLOPs are 2 x MACs of one image of
640 x 640 pixels in training form: heads with two pairs of towers are counted with both, as Ultralytics does.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.yolo.blocks import VARIES  # noqa: E402
from models.yolo.parse import FOLDERS  # noqa: E402
from models.yolo.space import YoloSpace  # noqa: E402
from utils.errors import UserError  # noqa: E402

OTHER_TASKS = re.compile(r"-(cls|seg|sem|pose|obb|depth)\b")
FREE = ("Concat", "nn.")  # without weights


def line(name: str) -> str:
    """A row of the table."""
    try:
        space = YoloSpace(name)
    except UserError as error:
        return f"| {name} | no: {str(error).split(';')[0]} | | | | |"
    cost = space.cost(space.default(), 640)
    modules = Counter(row.module for row in space.rows)
    vary = [m for m in modules if m in VARIES and any(row.choices() for row in space.rows if row.module == m)]
    fixed = [m for m in modules if m not in vary and not m.startswith(FREE)]
    return (
        f"| {name} | yes | {', '.join(vary)} | {', '.join(fixed)} | {len(space.choices)} | "
        f"{cost['params_m']:.3f} | {cost['gflops']:.2f} |"
    )


def main() -> None:
    package = find_spec("ultralytics")
    roots = (package and package.submodule_search_locations) or ()
    print("| YAML | parses | modules that vary | fixed | choices | params (M) | GFLOPs at 640 px |")
    print("|---|---|---|---|---|---|---|")
    for folder in FOLDERS:
        for path in sorted(Path(root) / "cfg/models" / folder for root in roots):
            for file in sorted(path.glob("*.yaml")):
                if not OTHER_TASKS.search(file.stem):
                    print(line(re.sub(r"^(yolo(?:e-)?v?(?:5|8|11|12|26))\b(?!\d)", r"\1n", file.name)))


if __name__ == "__main__":
    main()
