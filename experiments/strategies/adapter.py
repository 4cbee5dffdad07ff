"""Any ask/tell object as an NNI strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nni.nas.strategy.base import Strategy

if TYPE_CHECKING:
    from experiments.strategies.contract import AskTell
    from models.space import Space


class AskTellStrategy(Strategy):
    """NNI strategies push models into an engine; this asks for them one at a time, as workers become free.

    Needs the ledger below it, which puts the `Trial` on every model it reports back.
    """

    def __init__(self, searcher: AskTell, space: Space) -> None:
        super().__init__()
        self.searcher = searcher
        self.space = space

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        engine.register_model_event_callback("training_end", self._tell)
        return model_space

    def _cleanup(self) -> None:
        self.engine.unregister_model_event_callback("training_end", self._tell)

    def _run(self) -> None:
        while self.wait_for_resource():
            arch = self.searcher.ask()
            if arch is None and getattr(self.searcher, "waiting", False):
                self.engine.wait_models()
                arch = self.searcher.ask()
            if arch is None:
                break
            model = self.model_space.freeze(self.space.complete(arch))
            model.parents = self.searcher.parents
            self.engine.submit_models(model)
        self.engine.wait_models()

    def _tell(self, event: Any) -> None:
        self.searcher.tell(event.model.trial)

    def extra_repr(self) -> str:
        return type(self.searcher).__name__
