"""The options of a request are declared once; what repeats them for a type checker or the trainer agrees with that."""

from collections.abc import Iterable
from typing import get_args, get_type_hints

import pytest
from pydantic import BaseModel

from models import catalogue
from models.training.run import TrainingOptions
from subjects import names
from subjects.client import CallOptions, EmbedCallOptions
from subjects.client.generate import GenerateCallOptions
from subjects.client.jobs import FinetuneCallOptions
from subjects.embed import EmbedOptions, EncodeOptions
from subjects.finetune import FinetuneOptions, FinetuneRequest
from subjects.generate import GenerateOptions, GenerateRequest


@pytest.mark.parametrize(
    ("call", "models", "parameters"),
    [
        (CallOptions, [EncodeOptions], []),
        (EmbedCallOptions, [EmbedOptions], []),
        (
            GenerateCallOptions,
            [GenerateOptions, GenerateRequest],
            ["prompt", "tokens", "messages", "prefix", "suffix", "stream"],
        ),
        (FinetuneCallOptions, [FinetuneRequest, FinetuneOptions], ["path", "pairs", "options"]),
    ],
)
def test_a_call_takes_what_the_request_does(
    call: type, models: Iterable[type[BaseModel]], parameters: list[str]
) -> None:
    fields = {name for model in models for name in model.model_fields}
    assert get_type_hints(call).keys() == fields - set(parameters) | {"timeout_s"}


def test_the_trainer_takes_what_the_request_does() -> None:
    def declared(model: type[BaseModel]) -> dict[str, object]:
        return {
            name: (field.annotation, field.default, sorted(map(repr, field.metadata)))
            for name, field in model.model_fields.items()
        }

    assert declared(TrainingOptions) == declared(FinetuneOptions)


@pytest.mark.parametrize("name", ["Kind", "Form", "Use", "Dtype", "Quantization"])
def test_a_word_of_the_catalogue_is_one_of_the_wire(name: str) -> None:
    assert get_args(getattr(catalogue, name)) == get_args(getattr(names, name))
