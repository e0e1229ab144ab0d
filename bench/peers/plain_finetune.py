"""The peer of bench.finetune: a plain loop over sentence-transformers' InfoNCE, batches in random order, in fp32.

    python -m bench.peers.plain_finetune MODEL_FOLDER PAIRS.jsonl OUT_FOLDER OPTIONS_JSON

Prints one JSON line at its end. Knows nothing of models/.
"""

import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss


def main(folder: str, pairs_file: str, out: str, options_json: str) -> None:
    options = json.loads(options_json)
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    model = SentenceTransformer(folder, device="cpu")
    model.max_seq_length = options["max_tokens"]
    lines = [json.loads(line) for line in Path(pairs_file).read_bytes().split(b"\n") if line]
    pairs = [(line["anchor"], line["positive"]) for line in lines if line["split"] == "train"]
    loss = MultipleNegativesRankingLoss(model)
    batches = [
        batch
        for epoch in range(options["epochs"])
        for batch in _batches(pairs, options["batch_size"], options["seed"] + epoch)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=options["learning_rate"], weight_decay=0.01)
    warmup = max(1, round(options["warmup"] * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(batches) - step) / max(1, len(batches) - warmup))
    )
    model.train()
    started, done = time.perf_counter(), 0
    for batch in batches:
        if time.perf_counter() - started > options["budget_s"]:
            break
        columns: list[dict[str, Any]] = [model.tokenize(list(texts)) for texts in zip(*batch, strict=True)]
        loss(columns, None).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        done += len(batch)
    seconds = time.perf_counter() - started
    model.eval()
    model.save(out, create_model_card=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"pairs": done, "seconds": seconds, "peak_bytes": peak}))


def _batches(pairs: list[tuple[str, str]], size: int, seed: int) -> list[list[tuple[str, str]]]:
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    return [shuffled[at : at + size] for at in range(0, len(shuffled) - size + 1, size)]


if __name__ == "__main__":
    main(*sys.argv[1:])
