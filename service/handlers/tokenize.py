"""`ml.tokenize` and `ml.detokenize`: the work is done on the threads that tokenize for the model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

from models import tokenized_text as models
from models.encoders.base import TextOptions
from models.generation.types import Chat, Plain
from models.tokenized_text import Vocabulary
from subjects import names
from subjects.errors import InvalidField, TooLarge
from subjects.tokenize import (
    MAX_SHOWN_TOKENS,
    DetokenizeReply,
    DetokenizeRequest,
    TokenizedText,
    TokenizeReply,
    TokenizeRequest,
)

from ..embedding.embedder import Embedder
from ..endpoint.call import Call
from ..endpoint.route import Handler
from ..generation.generator import Generator, size_of
from ..generation.request import chat_of
from ..residency.manager import ModelManager

JOB_SIZE = 65_536
"""Characters or ids of one job for the threads, unless its first text alone has more."""
LARGE_TOKENS = 4096
"""A reply of this many tokens is encoded in a thread."""
OF_EMBEDDING = ("task", "prompt_name", "prompt")

Tokenizer: TypeAlias = Callable[[str | Chat], models.TokenizedText]
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class TokenizeHandlers:
    manager: ModelManager

    def handlers(self) -> dict[str, Handler]:
        return {names.TOKENIZE: Handler(self.tokenize), names.DETOKENIZE: Handler(self.detokenize)}

    async def tokenize(self, request: TokenizeRequest, call: Call) -> TokenizeReply:
        chat = request.messages and chat_of(request.messages, request.continue_final)
        texts: Sequence[str | Chat] = [chat] if chat else request.text or []
        counts: list[int] = []
        results: list[TokenizedText] = []
        async with self.manager.any_model(request.model, "messages" if chat else "prompt") as served:
            tokenizer, facts = _tokenizer(served, request), served.facts
            for job in _jobs(texts, size_of):
                left = None if request.count_only else MAX_SHOWN_TOKENS - sum(counts)
                size = sum(map(size_of, job))
                found = await served.on_tokenizer(size, _tokenize, tokenizer, job, vocabulary_of(served), left)
                counts += found.counts
                results += found.texts
        call.large = sum(counts) >= LARGE_TOKENS
        shown = None if request.count_only else results
        return TokenizeReply(model=facts.model, version=facts.version, counts=counts, results=shown)

    async def detokenize(self, request: DetokenizeRequest, call: Call) -> DetokenizeReply:
        texts: list[str] = []
        size = 0
        async with self.manager.any_model(request.model, "prompt") as served:
            facts, vocabulary = served.facts, vocabulary_of(served)
            for job in _jobs(request.tokens, len):
                size_of_job = sum(map(len, job))
                texts += await served.on_tokenizer(size_of_job, _decode, job, vocabulary, request.skip_special_tokens)
                size = sum(map(len, texts))
                if size > call.reply_limit:
                    raise TooLarge(f"the texts pass the {call.reply_limit} bytes that a message holds; send fewer ids")
        call.large = size >= LARGE_TOKENS
        return DetokenizeReply(model=facts.model, version=facts.version, texts=texts)


@dataclass(frozen=True, slots=True)
class _Found:
    """counts: of each text. texts: empty if only counts are wanted."""

    counts: list[int]
    texts: list[TokenizedText]


def vocabulary_of(served: Embedder | Generator) -> Vocabulary:
    return served.encoder.vocabulary if isinstance(served, Embedder) else served.engine.vocabulary


def _tokenizer(served: Embedder | Generator, request: TokenizeRequest) -> Tokenizer:
    """What makes tokens of a text or a chat. Raises InvalidField for what this kind of model does not take."""
    asked = {"special": request.add_special_tokens, "offsets": not request.count_only}
    if isinstance(served, Embedder):
        if request.messages is not None:
            raise InvalidField(f"field 'messages': model {served.facts.model!r} gives vectors, and no chat is read")
        encoder, options = served.encoder, TextOptions(request.prompt, request.prompt_name, request.task)
        return lambda text: encoder.tokenized(cast(str, text), options, **asked)
    if foreign := [name for name in OF_EMBEDDING if getattr(request, name) is not None]:
        raise InvalidField(f"field {foreign[0]!r} is for models that embed, and {served.facts.model!r} generates text")
    engine = served.engine
    return lambda text: engine.tokenized(text if isinstance(text, Chat) else Plain(text), **asked)


def _tokenize(tokenizer: Tokenizer, texts: Sequence[str | Chat], vocabulary: Vocabulary, most: int | None) -> _Found:
    """most: how many tokens may still be shown; None: only counts are wanted. Raises TooLarge."""
    found, total = _Found([], []), 0
    for text in texts:
        tokens = tokenizer(text)
        found.counts.append(len(tokens.ids))
        total += len(tokens.ids)
        if most is not None:
            if total > most:
                raise TooLarge(f"there are more than {MAX_SHOWN_TOKENS} tokens; send less, or 'count_only'")
            found.texts.append(_shown(tokens, vocabulary))
    return found


def _shown(tokens: models.TokenizedText, vocabulary: Vocabulary) -> TokenizedText:
    return TokenizedText(
        ids=list(tokens.ids),
        pieces=[vocabulary.piece(token) for token in tokens.ids],
        offsets=tokens.offsets(),
        special=[place for place, token in enumerate(tokens.ids) if token in vocabulary.special],
    )


def _decode(lists: Sequence[Sequence[int]], vocabulary: Vocabulary, skip_special: bool) -> list[str]:
    return [vocabulary.decode(tokens, skip_special) for tokens in lists]


def _jobs(items: Sequence[ItemT], size: Callable[[ItemT], int]) -> Iterator[list[ItemT]]:
    """The items in order, in parts of at most JOB_SIZE; a larger item is a part alone."""
    part: list[ItemT] = []
    total = 0
    for item in items:
        if part and total + size(item) > JOB_SIZE:
            yield part
            part, total = [], 0
        part.append(item)
        total += size(item) + 1  # a text that is empty takes time too
    yield part
