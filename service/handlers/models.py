"""`ml.models.*`: decode, call the manager, encode."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from models.catalogue import ModelSpec, Use
from models.weights import hub
from models.weights.version_history import Version, history
from models.weights.versions import live_version, versions
from subjects import models as wire
from subjects import names

from ..endpoint.call import Call
from ..endpoint.route import Handler
from ..jobs.promotion import Promotion
from ..residency.manager import ModelManager
from ..residency.reservations import Loaded
from .finetune import answering

_STATED = {"id", "kind", "matryoshka", "default_task", "licence", "commercial", "repository", "revision", "size_gb"}
"""Fields of a catalogue entry that are told as they are."""


@dataclass(frozen=True, slots=True)
class ModelHandlers:
    """worker: this worker's id; checkpoints: the folder of fine-tuned versions."""

    manager: ModelManager
    worker: str
    checkpoints: Path
    promotion: Promotion

    def handlers(self) -> dict[str, Handler]:
        return {
            names.MODELS_LIST: Handler(self.list),
            names.MODELS_INFO: Handler(self.info),
            names.MODELS_RECOMMENDED: Handler(self.recommended),
            names.MODELS_LOAD: Handler(self.load),
            names.MODELS_UNLOAD: Handler(self.unload),
            names.MODELS_RELOAD: Handler(self.reload, answer_here=self.reload_here),
            names.MODELS_PROMOTE: Handler(self.promote),
        }

    async def list(self, request: wire.ModelsListRequest, _call: Call) -> wire.ModelsListReply:
        specs = [spec for spec in self.manager.catalogue if request.kind in (None, spec.kind)]
        entries = [await self._entry(spec) for spec in specs]
        registry = self.manager.registry
        memory = [
            wire.DeviceMemory(
                device=device, budget_bytes=registry.budget(device), used_bytes=registry.used_bytes(device)
            )
            for device in registry.devices()
        ]
        return wire.ModelsListReply(worker=self.worker, models=entries, memory=memory)

    async def info(self, request: wire.ModelsInfoRequest, _call: Call) -> wire.ModelsInfoReply:
        entry = await self._entry(self.manager.catalogue.get(request.model))
        where = self.checkpoints, request.model
        return wire.ModelsInfoReply(
            worker=self.worker,
            model=entry,
            versions=list(await asyncio.to_thread(versions, *where)),
            live=await asyncio.to_thread(live_version, *where),
            history=[_version(version) for version in await asyncio.to_thread(history, *where)],
        )

    async def recommended(self, request: wire.ModelsRecommendedRequest, _call: Call) -> wire.ModelsRecommendedReply:
        present = await asyncio.to_thread(self._present)
        uses = [(spec.recommended_for, spec) for spec in self.manager.catalogue]
        found = [self._recommendation(use, spec, present) for use, spec in uses if use and request.use in (None, use)]
        return wire.ModelsRecommendedReply(worker=self.worker, recommended=found)

    async def load(self, request: wire.ModelsLoadRequest, _call: Call) -> wire.ModelsChangeReply:
        loaded = await self.manager.load(request.model, request.dtype, request.quantization, pin=request.pin)
        return self._changed(loaded)

    async def reload(self, request: wire.ModelsReloadRequest, call: Call) -> wire.ModelsChangeReply:
        """A version that is named becomes the live one, also for workers that start later."""
        if request.version is None:
            return await self.reload_here(request, call)
        return self._changed(await self.promotion.rollout.go_back(request.model, request.version))

    async def reload_here(self, request: wire.ModelsReloadRequest, _call: Call) -> wire.ModelsChangeReply:
        """A version that is named is served by this worker alone, until another goes live."""
        if request.version is None:
            return self._changed(await self.manager.reload(request.model))
        return self._changed(await self.promotion.rollout.serve_here(request.model, request.version))

    async def unload(self, request: wire.ModelsUnloadRequest, _call: Call) -> wire.ModelsChangeReply:
        model = self.manager.catalogue.get(request.model).id
        loaded = await self.manager.evictor.unload(model, force=request.force)
        return wire.ModelsChangeReply(worker=self.worker, model=loaded.model, unloaded=self._loaded(loaded))

    async def promote(self, request: wire.ModelsPromoteRequest, _call: Call) -> wire.ModelsPromoteReply:
        model, version, live = request.model, request.version, True
        with answering():
            if request.job is not None:
                job, notes = await self.promotion.of_job(request.job)
                model, version, live = job.model, job.version, job.state == "done"
            else:
                notes = await self.promotion.of_version(str(model), str(version))
        return wire.ModelsPromoteReply(
            worker=self.worker, model=str(model), version=version, job=request.job, live=live, notes=list(notes)
        )

    def _changed(self, loaded: Loaded) -> wire.ModelsChangeReply:
        return wire.ModelsChangeReply(worker=self.worker, model=loaded.model, loaded=self._loaded(loaded))

    async def _entry(self, spec: ModelSpec) -> wire.ModelEntry:
        loaded = self.manager.registry.current(spec.id)
        failed = self.manager.registry.failure(spec.id)
        failure = failed.error if failed else self.manager.missing.get(spec.id)
        facts = loaded.serves.facts if loaded else None
        default_for = [form for form, model in self.manager.defaults.items() if model == spec.id]
        return wire.ModelEntry(
            **spec.model_dump(include=_STATED),
            default=bool(default_for),
            default_for=default_for,
            forms=[form for form in get_args(names.Form) if spec.takes(form)],
            dimensions=(facts.dimensions if facts else spec.dimensions) or None,
            max_tokens=facts.max_tokens if facts else spec.max_tokens,
            prompts=list(facts.prompts if facts else spec.prompts),
            tasks=list(spec.tasks),
            present=await asyncio.to_thread(hub.is_present, spec),
            loaded=self._loaded(loaded) if loaded else None,
            failure=str(failure) if failure else None,
        )

    def _loaded(self, loaded: Loaded) -> wire.LoadedModel:
        facts = loaded.serves.facts
        return wire.LoadedModel(
            version=loaded.version,
            device=loaded.device,
            dtype=facts.dtype,
            quantization=facts.quantization,
            memory_bytes=loaded.memory_bytes,
            pinned=loaded.pinned,
            requests=loaded.leases,
            idle_s=round(self.manager.registry.clock() - loaded.used_at, 3),
            notes=list(facts.notes),
        )

    def _present(self) -> set[str]:
        return {spec.id for spec in self.manager.catalogue if hub.is_present(spec)}

    def _recommendation(self, use: Use, spec: ModelSpec, present: set[str]) -> wire.Recommendation:
        same_kind = [other.id for other in self.manager.catalogue if other.kind == spec.kind]
        default = self.manager.defaults.get("embedding" if spec.kind == "embedding" else "prompt")
        candidates = [spec.id, default, *same_kind]
        model = next((name for name in candidates if name in present and name in same_kind), None)
        return wire.Recommendation(use=use, recommended=spec.id, model=model, present=spec.id in present)


def _version(version: Version) -> wire.VersionEntry:
    """All but the id of the job that made it: whoever knows the id may see the job, and cancel it."""
    record = version.record
    return wire.VersionEntry(
        name=version.name,
        created_at=version.made_at,
        parent=record.parent if record else None,
        live=version.live,
        previous=version.previous,
        accepted=version.accepted,
        judged=version.judged,
        reasons=version.reasons,
        metrics=version.metrics,
        weights=record.weights_sha256[:12] if record else None,
        pairs=version.pairs,
        size_bytes=version.size_bytes,
        problem=version.problem,
    )
