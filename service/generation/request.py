"""From a request on the wire to requests of the engine, one for each completion.

Completion number k = index * n + choice has the id `<call>.<k>` and the seed of the request plus k. The engine never
sees the caller's own id: that may come again while the engine still drops the last one.
"""

import functools
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from models.catalogue import Form, SamplingDefaults
from models.errors import InvalidOption, ModelError
from models.generation import types as engine
from models.tokenized_text import Vocabulary
from subjects.generate import MAX_SEED, GenerateBatchRequest, GenerateOptions, GenerateRequest
from subjects.generate_fields import ChatMessage

from .completion_stream import Requests
from .generator import Generator

log = structlog.get_logger(__name__)

SEED_BITS = 52
"""Of a seed that is drawn: with a few thousand added, JavaScript still reads it exactly."""


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """What a request asks for.

    id: of the call, on this worker. seed: of completion 0. batch: whether it is a batch of prompts. caller: who takes
    turns with other callers. echoes: what the completions of each prompt begin with; empty: with nothing.
    context_files: how many files of its context a gap was filled with, once that is known.
    """

    id: str
    prompts: Sequence[engine.Prompt]
    options: GenerateOptions
    seed: int
    batch: bool = False
    caller: str = ""
    echoes: Sequence[str] = ()
    context_files: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many completions."""
        return len(self.prompts) * self.options.n

    @property
    def form(self) -> Form:
        """The form of its prompts, which all have the same."""
        match self.prompts[0]:
            case engine.Plain() | engine.Ids():
                return "prompt"
            case engine.Chat():
                return "messages"
            case engine.Fill():
                return "fim"

    @property
    def has_context(self) -> bool:
        """Whether it is a gap with files before it."""
        return isinstance(self.prompts[0], engine.Fill) and bool(self.prompts[0].context)

    def seed_of(self, number: int) -> int:
        """The seed that a completion is sampled with."""
        return (self.seed + number) & MAX_SEED

    def echo(self, number: int) -> str:
        """What a completion's text begins with: the prompt if the request has `echo`."""
        return self.echoes[number // self.options.n] if self.echoes else ""

    async def with_echoes(self, generator: Generator) -> "GenerationCall":
        """The same with the echoes of prompts that are ids, special tokens by their names."""
        lists = [prompt.tokens for prompt in self.prompts if isinstance(prompt, engine.Ids)]
        if not lists or not self.options.echo:
            return self
        texts = await generator.on_tokenizer(sum(map(len, lists)), _decoded, generator.engine.vocabulary, lists)
        return replace(self, echoes=texts)

    def never_begun(self, number: int, reason: engine.FinishReason, error: Exception | None = None) -> engine.Finished:
        """The end of a completion that the engine has not seen."""
        return engine.Finished(f"{self.id}.{number}", reason, engine.Usage(0, 0, 0), error=error)

    async def requests(self, generator: Generator) -> Requests:
        """Each completion's request, in order; if a prompt cannot be made one, its end."""
        make = functools.partial(self._request, facts=generator.engine.facts)
        for index, prompt in enumerate(self.prompts):
            numbers = range(index * self.options.n, (index + 1) * self.options.n)
            try:
                made = await generator.request(prompt, make, self.options.max_tokens, self.options.num_beams)
            except Exception as error:
                if not isinstance(error, ModelError):
                    log.exception("prompt.failed", model=generator.facts.model, call=self.id)
                for number in numbers:
                    yield self.never_begun(number, "error", error)
            else:
                for number in numbers:
                    sampling = replace(made.sampling, seed=self.seed_of(number))
                    yield replace(made, id=f"{self.id}.{number}", sampling=sampling)

    def _request(self, tokens: engine.PromptTokens, facts: engine.EngineFacts) -> engine.Request:
        self.context_files.append(tokens.context_files)
        options, max_tokens = self.options, self.options.max_tokens
        if "max_tokens" not in options.model_fields_set:  # the default, or what the context leaves if that is less
            max_tokens = max(1, min(max_tokens, facts.max_tokens - len(tokens.ids)))
        return engine.Request(
            id=self.id,
            prompt=tokens.ids,
            max_tokens=max_tokens,
            min_tokens=options.min_tokens,
            stop_ids=tokens.stop_ids | frozenset(options.stop_token_ids or ()),
            stop=tuple(options.stop or ()),
            sampling=_sampling(options, facts.defaults),
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            prompt_logprobs=options.echo,
            caller=self.caller,
        )


def read(request: GenerateRequest | GenerateBatchRequest, call: str, caller: str = "") -> GenerationCall:
    """What a request asks for, for the call of this id; a seed is drawn if it names none."""
    seed = secrets.randbits(SEED_BITS) if request.seed is None else request.seed
    batch = isinstance(request, GenerateBatchRequest)
    prompts = _prompts(request) if isinstance(request, GenerateBatchRequest) else [_prompt(request)]
    echoes = [prompt.text for prompt in prompts if isinstance(prompt, engine.Plain)] if request.echo else []
    return GenerationCall(call, prompts, request, seed, batch, caller, echoes)


def chat_of(messages: Sequence[ChatMessage], continue_final: bool) -> engine.Chat:
    """The messages of a request."""
    return engine.Chat(tuple(engine.Message(message.role, message.content) for message in messages), continue_final)


def number_of(request: str) -> int:
    """The number of a completion, from the id of its request."""
    return int(request.rpartition(".")[2])


def _decoded(vocabulary: Vocabulary, lists: Sequence[Sequence[int]]) -> list[str]:
    """The text of each list of ids; empty if it has unknown ones, which is its own prompt's error."""
    texts = [""] * len(lists)
    for place, tokens in enumerate(lists):
        with suppress(InvalidOption):
            texts[place] = vocabulary.decode(tokens, skip_special=False)
    return texts


def _prompts(request: GenerateBatchRequest) -> list[engine.Prompt]:
    return [*map(engine.Plain, request.prompts or ()), *map(engine.Ids, request.tokens or ())]


def _prompt(request: GenerateRequest) -> engine.Prompt:
    if request.messages is not None:
        return chat_of(request.messages, request.continue_final)
    if request.prompt is not None:
        return engine.Plain(request.prompt)
    if request.tokens is not None:
        return engine.Ids(request.tokens)
    context = [engine.ContextFile(file.path, file.text) for file in request.context or ()]
    return engine.Fill(request.prefix or "", request.suffix or "", context, request.path, request.repository)


def _sampling(options: GenerateOptions, defaults: SamplingDefaults) -> engine.Sampling:
    """What the request says, else what the model's configuration says, else neutral values."""
    chosen: dict[str, Any] = {}
    for name in SamplingDefaults.model_fields:
        stated = getattr(options, name)
        value = getattr(defaults, name) if stated is None else stated
        if value is not None:
            chosen[name] = value
    return engine.Sampling(
        **chosen,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=options.logit_bias or {},
        logprobs=options.logprobs,
    )
