"""Token ids to text: exactly what the tokeniser makes of them at once, in pieces that are final."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from generation_models import codellama, llama, starcoder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from models.errors import ModelUnavailable
from models.generation.output import Detokeniser, TextOutput
from models.generation.token_bytes import read_token_bytes
from models.generation.tokenizer import GenerationTokenizer
from models.generation.types import Piece, Request, TokenLogprob

FOLDERS: dict[str, Callable[[], Path]] = {"sentencepiece": codellama, "byte level": starcoder}
KINDS = pytest.mark.parametrize("kind", FOLDERS)
SPACE_SIGN = "\N{LOWER ONE EIGHTH BLOCK}"  # which SentencePiece takes for a space
TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters=SPACE_SIGN),
        st.sampled_from("  \n\tdef你好🙂é\N{ZERO WIDTH JOINER}"),
    )
)


@cache
def tokenizer(kind: str) -> GenerationTokenizer:
    return GenerationTokenizer.read(FOLDERS[kind]())


@cache
def backend(kind: str) -> Tokenizer:
    """transformers' own, as the oracle."""
    return AutoTokenizer.from_pretrained(FOLDERS[kind]()).backend_tokenizer


def at_once(kind: str, ids: Sequence[int]) -> str:
    return backend(kind).decode(list(ids), skip_special_tokens=True)


def pieces(kind: str, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokeniser = Detokeniser(tokenizer(kind), prompt)
    return [*(detokeniser.push(token) for token in ids), detokeniser.flush()]


def of(kind: str, *tokens: str) -> list[int]:
    ids = [backend(kind).token_to_id(token) for token in tokens]
    assert None not in ids
    return ids


@KINDS
@given(data=st.data())
def test_pieces_joined_equal_the_one_shot_text(kind: str, data: st.DataObject) -> None:
    # Past the vocabulary too: models have rows in their output layer that are no token.
    ids = data.draw(st.lists(st.integers(0, tokenizer(kind).vocabulary + 20)))
    assert "".join(pieces(kind, ids)) == at_once(kind, [token for token in ids if token < tokenizer(kind).vocabulary])


@KINDS
@given(data=st.data())
def test_invalid_bytes_are_replaced_as_the_tokeniser_does(kind: str, data: st.DataObject) -> None:
    if kind == "byte level":
        names = st.sampled_from([name for name in backend(kind).get_vocab() if len(name) == 1])
    else:
        names = st.one_of(st.sampled_from(["▁", "<s>", "e"]), st.integers(0, 255).map("<0x{:02X}>".format))
    ids = of(kind, *data.draw(st.lists(names)))
    assert "".join(pieces(kind, ids)) == at_once(kind, ids)


@KINDS
@given(text=TEXTS)
def test_text_survives_a_round_trip(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text)[len(tokenizer(kind).prefix_ids) :]
    assert "".join(pieces(kind, ids)) == at_once(kind, ids)
    within = tokenizer(kind).encode_within(text)
    assert "".join(pieces(kind, within, prompt=of(kind, "e"))) == text


@KINDS
@given(text=TEXTS, more=TEXTS)
def test_a_completion_is_the_whole_text_without_its_prompt(kind: str, text: str, more: str) -> None:
    prompt, ids = tokenizer(kind).encode(text + "."), tokenizer(kind).encode_within(more)
    before, whole = at_once(kind, prompt), at_once(kind, [*prompt, *ids])
    assert whole.startswith(before)
    assert "".join(pieces(kind, ids, prompt)) == whole.removeprefix(before)


@KINDS
@given(text=TEXTS)
def test_no_piece_holds_part_of_a_character(kind: str, text: str) -> None:
    sent = ""
    for piece in pieces(kind, tokenizer(kind).encode_within(text), prompt=of(kind, "e")):
        sent += piece
        assert text.startswith(sent)


def test_a_character_is_emitted_with_its_last_byte() -> None:
    ids = tokenizer("byte level").encode("é🙂")
    assert [piece for piece in pieces("byte level", ids) if piece] == ["é", "🙂"]
    assert pieces("byte level", ids)[-2:] == ["🙂", ""]


def test_a_run_of_fallback_bytes_is_emitted_when_it_ends() -> None:
    good = of("sentencepiece", "<0xE4>", "<0xBD>", "<0xA0>", "e")
    assert pieces("sentencepiece", good) == ["", "", "", "你e", ""]
    bad = of("sentencepiece", "<0xE4>", "<0xBD>", "<0xA0>", "<0xFF>")
    assert pieces("sentencepiece", bad) == ["", "", "", "", "\ufffd" * 4]


def test_the_first_space_is_dropped_only_at_the_start_of_a_text() -> None:
    words, bos = of("sentencepiece", "▁", "e", "▁", "e"), of("sentencepiece", "<s>")
    assert pieces("sentencepiece", words) == ["", "e", " ", "e", ""]
    assert pieces("sentencepiece", words, prompt=bos) == ["", "e", " ", "e", ""]
    assert pieces("sentencepiece", words, prompt=[*bos, *words, *bos]) == [" ", "e", " ", "e", ""]


@KINDS
def test_token_bytes_name_special_tokens_too(kind: str) -> None:
    known = tokenizer(kind)
    for token in known.encode_within(" return x"):
        assert known.token_bytes(token) in b" return x"
    assert known.token_bytes(known.encode_within("🙂")[0]) in "🙂".encode()
    assert known.token_bytes(known.eos_id or 0) in (b"</s>", b"<|endoftext|>")
    assert known.token_bytes(10**6) == b""


def test_unsupported_decoders_are_refused(tmp_path: Path) -> None:
    for decoder in (decoders.WordPiece(), decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]), None):
        other = Tokenizer(models.BPE({"a": 0}, []))
        if decoder is not None:
            other.decoder = decoder
        with pytest.raises(ValueError, match="is not known here"):
            read_token_bytes(other)
    other.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ModelUnavailable, match="'mine' is unavailable: its tokeniser decodes by no rule"):
        GenerationTokenizer.read(tmp_path, "mine")


def test_added_tokens_of_a_byte_level_vocabulary_stand_for_themselves() -> None:
    other = Tokenizer(models.BPE({"a": 0}, []))
    other.decoder = decoders.ByteLevel()
    other.add_tokens(["你 a"])
    assert read_token_bytes(other).parts == {0: b"a", 1: "你 a".encode()}


def test_fallback_bytes_are_parsed_as_the_library_does() -> None:
    """A sign is one of its digits."""
    names = ["<0x+A>", "<0x-A>", "<0x0a>", "<0xAG>", "<0x+>"]
    other = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, []))
    other.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    parts = read_token_bytes(other).parts
    assert [parts[token] for token in range(5)] == [b"\n", "<0x-A>", b"\n", "<0xAG>", "<0x+>"]
    for token, part in parts.items():
        assert other.decode([token]) == (part if isinstance(part, str) else part.decode())


def test_a_slow_tokeniser_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(ModelUnavailable, match="has no fast form"):
        GenerationTokenizer.read(tmp_path)


def test_a_folder_without_a_tokeniser_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"use a copy with its tokenizer\.json"):
        GenerationTokenizer.read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_bigcode"}')
    (tmp_path / "tokenizer.json").write_text('{"broken')
    with pytest.raises(ModelUnavailable):
        GenerationTokenizer.read(tmp_path)


@KINDS
@given(text=TEXTS)
def test_the_bytes_of_tokens_are_the_text(kind: str, text: str) -> None:
    known = tokenizer(kind)
    assert b"".join(map(known.token_bytes, known.encode_within(text))) == text.encode()


def test_threads_share_a_tokeniser() -> None:
    known, texts = tokenizer("byte level"), ["def f(x):\n    return x\n" * count for count in range(1, 40)]
    expected = [(known.encode(text), known.encode_within(text)) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: (known.encode(text), known.encode_within(text)), texts)) == expected


def test_a_model_without_chat_and_fill_reports_it() -> None:
    base = GenerationTokenizer.read(llama())
    assert base.chat is None
    assert base.id_of("▁<PRE>") is None


def output(kind: str, *stop: str, min_tokens: int = 0) -> TextOutput:
    prompt = of(kind, "e")
    return TextOutput(Request("r", prompt, max_tokens=100, min_tokens=min_tokens, stop=stop), tokenizer(kind))


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token, tokenizer("byte level").token_bytes(token), -1.0)


def run(out: TextOutput, ids: Sequence[int]) -> tuple[list[Piece], str | None]:
    made: list[Piece] = []
    for token in ids:
        piece, stop = out.push(token, logprob(token))
        made += [piece] if piece else []
        if stop is not None:
            return made, stop
    last, stop = out.flush()
    return made + ([last] if last else []), stop


def test_tokens_without_text_belong_to_the_next_piece() -> None:
    ids = tokenizer("byte level").encode("🙂.")
    made, stop = run(output("byte level"), ids)
    assert stop is None
    assert [(piece.text, piece.tokens) for piece in made] == [("🙂", len(ids) - 1), (".", 1)]
    assert [[logprob.id for logprob in piece.logprobs] for piece in made] == [ids[:-1], ids[-1:]]


def test_a_stop_string_over_several_tokens_is_cut_off() -> None:
    ids = of("byte level", *"ab#!?c")
    made, stop = run(output("byte level", "#!?"), ids)
    assert stop == "#!?"
    assert [(piece.text, piece.tokens) for piece in made] == [("a", 1), ("b", 1)]


def test_released_text_comes_with_its_tokens() -> None:
    made, stop = run(output("byte level", "#!?"), of("byte level", *"a#!b#"))
    assert stop is None
    assert [(piece.text, piece.tokens) for piece in made] == [("a", 1), ("#!b", 3), ("#", 1)]
    assert [logprob.text for piece in made for logprob in piece.logprobs] == [b"a", b"#", b"!", b"b", b"#"]


def test_a_token_belongs_to_the_piece_of_its_first_character() -> None:
    words = sorted(name for name in backend("byte level").get_vocab() if name.isascii() and name.isalpha())
    long = next(word for word in words if len(set(word)) == len(word) > 3)
    made, stop = run(output("byte level", long[2:] + "#"), of("byte level", long, "!"))
    assert stop is None
    assert [(piece.text, piece.tokens) for piece in made] == [(long[:2], 1), (long[2:] + "!", 1)]
    made, stop = run(output("byte level", long[2:]), of("byte level", long))
    assert stop == long[2:]
    assert [(piece.text, piece.tokens) for piece in made] == [(long[:2], 1)]


def test_stop_strings_wait_for_min_tokens() -> None:
    ids = of("byte level", *"a#b#c")
    made, stop = run(output("byte level", "#", min_tokens=3), ids)
    assert ("".join(piece.text for piece in made), stop) == ("a#b", "#")
    made, stop = run(output("byte level", "#", min_tokens=2), ids)
    assert ("".join(piece.text for piece in made), stop) == ("a", "#")


def test_a_stop_string_of_byte_tokens_ends_the_text_at_once() -> None:
    made, stop = run(output("sentencepiece", "\n"), of("sentencepiece", "e", "<0x0A>", "<0x0A>", "e"))
    assert ([piece.text for piece in made], stop) == (["e"], "\n")
    made, stop = run(
        output("sentencepiece", "你"), of("sentencepiece", "e", "<0x0A>", "<0xE4>", "<0xBD>", "<0xA0>", "e")
    )
    assert ("".join(piece.text for piece in made), stop) == ("e\n", "你")


def test_a_stop_string_completed_by_the_flush_is_found() -> None:
    made, stop = run(
        output("byte level", "a\ufffd"), [*of("byte level", "e", "a"), *tokenizer("byte level").encode("你")[:1]]
    )
    assert ([piece.text for piece in made], stop) == (["e"], "a\ufffd")


def test_a_text_of_special_tokens_has_no_piece() -> None:
    made, stop = run(output("byte level", "x"), of("byte level", "<fim_pad>", "<fim_pad>"))
    assert (made, stop) == ([], None)


@KINDS
@given(data=st.data())
def test_pieces_are_never_empty_and_hold_each_token_once(kind: str, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer(kind).vocabulary - 1)))
    stops = data.draw(st.lists(st.text("e \n\ufffd", min_size=1, max_size=3), max_size=3))
    made, stop = run(output(kind, *stops), ids)
    text = "".join(pieces(kind, ids, of(kind, "e")))
    assert all(piece.text for piece in made)
    assert [logprob.id for piece in made for logprob in piece.logprobs] == ids[: sum(piece.tokens for piece in made)]
    sent = "".join(piece.text for piece in made)
    assert text.startswith(sent)
    assert not any(wanted in sent for wanted in stops)
    if stop is not None:
        assert text.startswith(sent + stop)
