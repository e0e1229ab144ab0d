"""OpenAI's paths as editors ask them, answered in the shape that they read."""

import pytest
from gateways import Gateway, post

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = [{"role": "system", "content": "You are an expert coder."}, {"role": "user", "content": "hi"}]


async def test_minuet_reads_lines_and_takes_what_it_can_parse(setup, gateway: Gateway) -> None:
    """As lua/minuet/backends/openai_base.lua and utils.lua do."""
    setup.engine.scripts["before <> after"] = [" be", "tween"]
    asked = {
        "model": "tiny_coder",
        "stream": True,
        "max_tokens": 56,
        "top_p": 0.9,
        "prompt": "before",
        "suffix": "after",
    }
    answer = await post(gateway, "/v1/completions", asked, accept="application/json", authorization="Bearer xterm")
    texts = [data["choices"][0]["text"] for _, _, data in answer.events if data != "[DONE]"]
    assert "".join(texts) == " between"


async def test_zed_asks_for_a_completion(setup, gateway: Gateway) -> None:
    """As crates/edit_prediction/src/open_ai_compatible.rs does."""
    setup.engine.scripts["before <> after"] = [" between"]
    prompt = "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>"
    stop = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    asked = {"model": "tiny_coder", "prompt": prompt, "max_tokens": 64, "temperature": None, "stop": stop}
    told = (await post(gateway, "/v1/completions", asked)).json
    assert (told["choices"][0]["text"], bool(told["id"])) == (" between", True)


async def test_llama_vim_instructs(gateway: Gateway) -> None:
    asked = {"id_slot": 1, "messages": CHAT, "min_p": 0.1, "temperature": 0.1, "samplers": ["min_p", "temperature"]}
    answer = await post(gateway, "/v1/chat/completions", {**asked, "stream": True, "cache_prompt": True})
    deltas = [data["choices"][0]["delta"] for _, _, data in answer.events if data != "[DONE]"]
    assert "".join(delta.get("content") or "" for delta in deltas).startswith(" 0 1 2")


async def test_llama_vscode_edits_and_embeds(gateway: Gateway) -> None:
    asked = {"messages": CHAT, "stream": False, "cache_prompt": True, "temperature": 0.8, "top_p": 0.95}
    told = (await post(gateway, "/v1/chat/completions", asked)).json
    assert told["choices"][0]["message"]["content"].startswith(" 0 1 2")
    vector = (await post(gateway, "/v1/embeddings", {"input": "a", "encoding_format": "float"})).json
    assert len(vector["data"][0]["embedding"]) == 8
