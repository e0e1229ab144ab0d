"""`ml.models.promote`: a candidate is made the version that serves. For the role admin of nats-server.conf alone."""

from pydantic import ConfigDict, Field, model_validator

from .embed import Message, Reply, Token
from .finetune import JobId
from .models import Version


class ModelsPromoteRequest(Message):
    """A version by its model and its name; or what comes of a job, by the job's id."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["model", "version"]}, {"required": ["job"]}]})

    model: Token | None = Field(None, description="model id, beside a version")
    version: Version | None = Field(None, description="an accepted version of ml.models.info, to serve now")
    job: JobId | None = Field(None, description="its version, now; or once it has passed, where it still runs")

    @model_validator(mode="after")
    def _one_of_both(self) -> "ModelsPromoteRequest":
        named = self.model is not None, self.version is not None, self.job is not None
        if named not in ((True, True, False), (False, False, True)):
            raise ValueError("give 'model' and 'version', or 'job' alone")
        return self


class ModelsPromoteReply(Reply):
    """live: whether it serves now; otherwise the job goes on, and its version will once it has passed."""

    worker: str
    model: str
    version: str | None = None
    job: str | None = None
    live: bool
    notes: list[str] = Field(default_factory=list, description="what else is to be said, such as workers left behind")
