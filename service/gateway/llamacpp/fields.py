"""Fields of llama.cpp's requests that have no effect here, and how far they are accepted."""

from ..fields import Ignored, Neutral

IGNORED: Ignored = {
    "id_slot": "names a slot; there are none",
    "cache_prompt": "keeps the prompt for the next request; that is always so",
    "n_cache_reuse": "reuses parts of the cache that moved",
    "n_keep": "says what is kept when the context overflows; a prompt that does not fit is refused",
    "n_discard": "the same",
    "t_max_prompt_ms": "bounds the time for the prompt; llama.cpp has no effect for it either",
    "repeat_last_n": "is how far back penalties look; here over the whole text",
    "penalty_last_n": "the same, as Tabby names it",
    "min_keep": "is how many tokens samplers must leave",
    "dry_base": "belongs to `dry_multiplier`",
    "dry_allowed_length": "belongs to `dry_multiplier`",
    "dry_penalty_last_n": "belongs to `dry_multiplier`",
    "dry_sequence_breakers": "belongs to `dry_multiplier`",
    "xtc_threshold": "belongs to `xtc_probability`",
    "dynatemp_exponent": "belongs to `dynatemp_range`",
    "mirostat_tau": "belongs to `mirostat`",
    "mirostat_eta": "belongs to `mirostat`",
    "timings_per_token": "adds timings to each piece of a stream",
    "return_progress": "reports how far the prompt is",
    "sse_ping_interval": "sends comments while nothing comes",
}

NEUTRAL: Neutral = {
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "grammar": ("",),
    "ignore_eos": (False,),
    "image_data": ([],),
    "json_schema": ({},),
    "lora": ([],),
    "mirostat": (0,),
    "n_probs": (0,),
    "parse_special": (True,),
    "post_sampling_probs": (False,),
    "return_tokens": (False,),
    "top_n_sigma": (0, -1),
    "typical_p": (1,),
    "xtc_probability": (0,),
}
