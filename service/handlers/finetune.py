"""`ml.finetune`, its uploads and `ml.jobs.*`: decode, call the submission, the bucket or the store, encode."""

from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from subjects import jobs as wire
from subjects import names
from subjects.errors import Forbidden, Unavailable
from subjects.finetune import FinetuneReply, FinetuneRequest
from subjects.stream import DONE, JOB
from subjects.uploads import UploadReply, UploadRequest

from ..endpoint.call import Call
from ..endpoint.frames import Frames
from ..endpoint.route import Handler
from ..jobs.retry import TROUBLE
from ..jobs.store import JobStore
from ..jobs.submission import Submission
from ..jobs.uploads import Uploads
from ..jobs.watch import JobWatch

PROMOTING = (
    "field 'swap': what serves is the administrator's to say. Leave it out: the new version is kept as a candidate, "
    f"and goes live by {names.MODELS_PROMOTE}, as admin: mlbus models promote, or at once mlbus finetune --promote"
)


@dataclass(frozen=True, slots=True)
class FinetuneHandlers:
    """Any worker answers; which one does the job is the queue's to say. user_of: the user who gets a reply subject."""

    submission: Submission
    store: JobStore
    job_watch: JobWatch
    uploads: Uploads
    user_of: Callable[[str], str]

    def handlers(self) -> dict[str, Handler]:
        return {
            names.FINETUNE: Handler(self.finetune),
            names.FINETUNE_UPLOAD: Handler(self.upload),
            names.JOBS_GET: Handler(self.get),
            names.JOBS_WATCH: Handler(self.watch),
            names.JOBS_LIST: Handler(self.list),
            names.JOBS_CANCEL: Handler(self.cancel),
        }

    async def finetune(self, request: FinetuneRequest, _call: Call) -> FinetuneReply:
        if request.swap:
            raise Forbidden(PROMOTING)
        with answering():
            return await self.submission.submit(request)

    async def upload(self, request: UploadRequest, call: Call) -> UploadReply:
        with answering():
            return await self.uploads.add(request, self.user_of(call.reply))

    async def get(self, request: wire.JobsGetRequest, _call: Call) -> wire.Job:
        with answering():
            return await self.store.require(request.job_id)

    async def watch(self, request: wire.JobsWatchRequest, _call: Call) -> Frames:
        """The job as it stands, each newer state of it, and at last its end."""
        with answering():
            async with aclosing(self.job_watch.states(request.job_id)) as states:
                async for job in states:
                    yield DONE if job.state in wire.TERMINAL else JOB, wire.JobFrame(**job.model_dump())

    async def list(self, request: wire.JobsListRequest, _call: Call) -> wire.JobsListReply:
        with answering():
            jobs = await self.store.list(request.state, request.model, request.limit, request.before)
        return wire.JobsListReply(jobs=jobs)

    async def cancel(self, request: wire.JobsCancelRequest, _call: Call) -> wire.Job:
        with answering():
            return await self.submission.cancel(request.job_id)


@contextmanager
def answering() -> Iterator[None]:
    """Inside, a part of the server that does not answer becomes an error that the caller hears of."""
    try:
        yield
    except TROUBLE as error:
        raise Unavailable(f"JetStream did not answer ({error}); ask again", retry_after_ms=1000) from error
