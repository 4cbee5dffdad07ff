"""What a search of serial codes goes on with: the step `parallel` (SP-NAS's second phase)."""

from __future__ import annotations

from experiments.config import Named
from experiments.run_folder import RunFolder
from experiments.search import completed_or_failed, search_by
from models.networks import open_any_space
from utils.errors import UserError


def parallel(run: RunFolder) -> None:
    """Train codes of the front with extra streams drawn beside their stages, as further trials of the run.

    Each starts from its code's weights where `search.inherit` is `parent`: streams begin by changing nothing.
    Interrupted, it goes on where it was. UserError where the search before it left no code.
    """
    if not hasattr(open_any_space(run.experiment.space, nc=1), "with_streams"):
        raise UserError(f"the step parallel needs a space of serial codes (code: ...), not {run.space_file}")
    begun = run.meta.get("parallel_from")
    if type(begun) is not int:
        begun = len(completed_or_failed(run))
        run.update_meta(parallel_from=begun)
    before = [t for t in run.history.load() if 0 <= t.number < begun]
    if before and not any(t.state == "complete" for t in before):
        raise UserError(
            f"the step parallel has no code to put streams beside: all {len(before)} trials before it "
            f"failed, the last one: {before[-1].reason}"
        )
    settings = run.experiment.search
    budget = begun + run.experiment.parallel.max_trials
    further = settings.model_copy(update={"strategy": Named(name="streams"), "max_trials": budget})
    search_by(run, further, first=begun)
