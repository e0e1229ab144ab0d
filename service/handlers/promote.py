"""`ml.models.promote`: decode, promote, encode."""

from subjects import names
from subjects.models import ModelsPromoteReply, ModelsPromoteRequest

from ..endpoint.call import Call
from ..endpoint.route import Handler
from ..jobs.promotion import Promotion
from .finetune import answering


class PromoteHandlers:
    """Any worker answers; worker: this one's id."""

    def __init__(self, promotion: Promotion, worker: str) -> None:
        self._promotion = promotion
        self._worker = worker

    def handlers(self) -> dict[str, Handler]:
        return {names.MODELS_PROMOTE: Handler(self.promote)}

    async def promote(self, request: ModelsPromoteRequest, _call: Call) -> ModelsPromoteReply:
        model, version, live = request.model, request.version, True
        with answering():
            if request.job is not None:
                job, notes = await self._promotion.of_job(request.job)
                model, version, live = job.model, job.version, job.state == "done"
            else:
                notes = await self._promotion.of_version(str(model), str(version))
        return ModelsPromoteReply(
            worker=self._worker, model=str(model), version=version, job=request.job, live=live, notes=list(notes)
        )
