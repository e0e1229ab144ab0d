"""The beams of one request: which sequence follows which. The search itself is in beam_search.py."""

from torch import Tensor, log_softmax

from .beam_search import BeamSearch, Hypothesis
from .request import Request
from .scheduler import Scheduler
from .sequence import Sequence


class BeamGroup:
    """first: what stands for the request. beams: those that go on, in the search's order; all: and those at rest."""

    def __init__(self, request: Request, order: int, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._search = BeamSearch(
            request.num_beams, request.length_penalty, request.stop_ids, request.max_tokens, request.min_tokens
        )
        siblings = tuple(Sequence(request, order, None, None) for _ in range(request.num_beams - 1))
        self.first = Sequence(request, order, None, None, siblings=siblings)
        self.all = (self.first, *siblings)
        self.beams = [self.first]

    def advance(self, rows: Tensor) -> Hypothesis | None:
        """Go one token further, by the beams' scores (R, V) -> the best text, once it is found."""
        steps = self._search.advance(log_softmax(rows, dim=-1))
        if self._search.done:
            return self._search.best()
        self.beams = self._follow(steps)
        return None

    def _follow(self, steps: list[tuple[int, int]]) -> list[Sequence]:
        """A sequence for each (parent, token): the parent's own, or where that is taken one of those that end here."""
        texts = [[*self.beams[parent].tokens, token] for parent, token in steps]
        parents = [self.beams[parent] for parent, _ in steps]
        free = [beam for beam in self.all if beam not in parents]
        beams: list[Sequence] = []
        for parent in parents:
            beam = parent
            if parent in beams:
                beam = free.pop()
                self._scheduler.fork(beam, parent)
            beams.append(beam)
        for beam, text in zip(beams, texts, strict=True):
            beam.tokens = text
        return beams
