"""Offline html pages: our templates with figures by plotly inside, and nothing that loads from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page of `utils/<template>`. All text is escaped by jinja; figures travel as JSON that cannot close
    its own script tag.

    context: what the template names; `figures` (plot -> tab -> figure) are drawn where it says `plot(name)`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = json.dumps(context["figures"], allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = ""
    if context["figures"]:
        from plotly.offline import get_plotlyjs

        script = get_plotlyjs()
    return environment.get_template(template).render(**context, figures_json=figures, plotly=script)
