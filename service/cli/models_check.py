"""`mlbus models check`: measures a model with its entry's settings and with others. Works without NATS."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models.catalogue import Dtype, ModelSpec, Quantization, load_catalogue

from ..residency.loader import LoadOverrides, ModelLoader
from ..settings import read_settings
from .options import Config, Json, ModelId
from .output import out, print_json, spinner, table_of

if TYPE_CHECKING:
    from models.checking.code_search import Setting
    from models.checking.precision import PrecisionResult
    from models.encoders.base import Encoder
    from models.generation.causal_lm import CausalLM


def check(model: ModelId, config: Config = None, as_json: Json = False) -> None:
    """Show how well a model does: an embedding model finds code, under each mask and end token that it allows.

    Of a generation model the perplexity of a text and a greedy sample, in fp32, bf16, int8 and int4.
    """
    settings = read_settings(config)
    spec = load_catalogue(settings.catalogue).get(model)
    with spinner() as progress:
        task = progress.add_task(f"{spec.id}: importing torch")
        loader = ModelLoader(settings, lambda step: progress.update(task, description=step))
        loader.prepare()
        measure = _check_embedding if spec.kind == "embedding" else _check_generation
        facts, parts = measure(spec, loader)
    if as_json:
        print_json({"model": spec.id, "kind": spec.kind, **facts})
        return
    for part in parts:
        out.print(part)


def _check_embedding(spec: ModelSpec, loader: ModelLoader) -> tuple[dict[str, Any], Sequence[Any]]:
    from models.checking import code_search
    from models.loading import loader as models

    def load(variant: ModelSpec) -> "Encoder":
        options = loader.options(variant, LoadOverrides())
        loader.require_room(variant, options)
        return models.load(variant, options, lambda step: loader.on_step(f"{_setting(variant)}: {step}"))

    found = code_search.evaluate(spec, load)
    best = code_search.best(found)
    rows = [_row(setting, best) for setting in found if setting.problem is None]
    problems = {_name(setting.causal, setting.append_eos): setting.problem for setting in found if setting.problem}
    facts = {"queries": len(code_search.items()), "settings": rows, "not_possible": problems}
    headings = ("setting", "NDCG@10", "MRR@10", "first", "against the catalogue's, 95 %", "")
    parts: list[Any] = [f"{len(code_search.items())} queries, each for one of as many functions"]
    parts.append(table_of(headings, map(_setting_cells, rows), whole=headings))
    parts += [f"not possible: {name}, {problem}" for name, problem in problems.items()]
    return facts, [*parts, _verdict(spec, found[0], best)]


def _row(setting: "Setting", best: "Setting") -> dict[str, Any]:
    ranking, gain = setting.ranking, setting.gain
    assert ranking is not None
    return {
        "causal": setting.causal,
        "append_eos": setting.append_eos,
        "ndcg_at_10": ranking.mean_ndcg,
        "mrr_at_10": ranking.mean_reciprocal_rank,
        "first": setting.first,
        "gain": gain and {"difference": gain.difference, "low": gain.low, "high": gain.high},
        "catalogue": setting.own,
        "best": setting is best,
    }


def _setting_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    gain = row["gain"]
    return (
        _name(row["causal"], row["append_eos"]),
        f"{row['ndcg_at_10']:.3f}",
        f"{row['mrr_at_10']:.3f}",
        f"{row['first']:.0%}",
        f"{gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else "-",
        ", ".join(word for word, holds in (("in the catalogue", row["catalogue"]), ("best", row["best"])) if holds),
    )


def _verdict(spec: ModelSpec, own: "Setting", best: "Setting") -> str:
    if best is own:
        return f"{spec.id} ranks best as the catalogue has it"
    assert best.gain is not None
    sure = "" if best.gain.low > 0 else ", which may be chance"
    causal, append_eos = (str(flag).lower() for flag in (best.causal, best.append_eos))
    return (
        f"{_name(best.causal, best.append_eos)} ranks best{sure}; in the settings file:\n\n"
        f"[catalogue.{spec.id}]\ncausal = {causal}\nappend_eos = {append_eos}"
    )


def _setting(spec: ModelSpec) -> str:
    return f"{spec.id}, {_name(spec.causal, bool(spec.append_eos))}"


def _name(causal: bool | None, append_eos: bool) -> str:
    mask = {None: "its own mask", True: "causal", False: "both ways"}[causal]
    return mask + (", end token appended" if append_eos else "")


def _check_generation(spec: ModelSpec, loader: ModelLoader) -> tuple[dict[str, Any], Sequence[Any]]:
    from models.checking import precision
    from models.loading import loader as models
    from models.loading.device import pick_device, pick_dtype

    chosen = loader.options(spec, LoadOverrides())

    def load(dtype: Dtype, quantization: Quantization | None) -> "CausalLM":
        options = replace(chosen, dtype=dtype, quantization=quantization)
        bare = spec.model_copy(update={"quantization": None})
        loader.require_room(bare, options)
        return models.load_generator(bare, options, lambda step: loader.on_step(f"{spec.id}: {step}"))

    found = precision.measure(load)
    own = spec.quantization or pick_dtype(chosen.dtype or spec.dtype, pick_device(chosen.device))
    rows = [_precision_row(one, own) for one in found]
    headings = ("precision", "weights", "perplexity", "greedy sample")
    table = table_of(headings, map(_precision_cells, rows), whole=headings[:3])
    return {"prompt": precision.PROMPT, "precisions": rows}, [table]


def _precision_row(one: "PrecisionResult", own: str) -> dict[str, Any]:
    possible = one.problem is None
    return {
        "precision": one.precision,
        "dtype": one.dtype or None,
        "weight_bytes": one.weight_bytes if possible else None,
        "perplexity": one.perplexity if possible else None,
        "sample": one.sample if possible else None,
        "problem": one.problem,
        "catalogue": one.precision == own,
    }


def _precision_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = row["precision"] + (" (in the catalogue)" if row["catalogue"] else "")
    if row["problem"]:
        return name, "-", "-", row["problem"]
    return name, f"{row['weight_bytes'] / 1e9:.2f} GB", f"{row['perplexity']:.3f}", row["sample"].rstrip()
