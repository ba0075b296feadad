"""Whole files of every format, to be damaged."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from safetensors.numpy import save

_TEXTS = ["a text of some words", "zwei äöü", "x" * 300, None, "y"] * 8
_CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def _table() -> pa.Table:
    ids = pa.array([[1, 2, 3]] * len(_TEXTS), pa.list_(pa.int32()))
    words = {"prompt": ["p"] * len(_TEXTS), "answer": ["a"] * len(_TEXTS)}
    return pa.table({"text": _TEXTS, "ids": ids, "messages": [_CHAT] * len(_TEXTS), **words})


def _parquet(**options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(_table(), file, **options)
    return file.getvalue()


def _arrow(new: Any) -> bytes:
    file, table = io.BytesIO(), _table()
    with new(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _numpy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(200, dtype=np.uint16))
    return file.getvalue()


def _csv() -> bytes:
    lines = ["text,prompt,answer", *(f'"{text or ""}, quoted",p,a' for text in _TEXTS)]
    return "\n".join(lines).encode()


def _sweep(names: list[str], values: np.ndarray) -> bytes:
    rows = (f"r{n}," + ",".join(f"{value:.6f}" for value in row) for n, row in enumerate(values))
    return "\n".join([",".join(["run", *names]), *rows]).encode()


_ROWS = [{"text": text or "", "prompt": "p", "answer": "a", "messages": _CHAT} for text in _TEXTS]
_LINES = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()
FILES: dict[str, list[bytes]] = {
    "data.parquet": [
        _parquet(),
        _parquet(compression="zstd"),
        _parquet(use_dictionary=False, compression="none"),
    ],
    "data.arrow": [_arrow(pa.ipc.new_file), _arrow(pa.ipc.new_stream)],
    "data.jsonl": [_LINES],
    "data.jsonl.gz": [gzip.compress(_LINES, mtime=0)],
    "data.jsonl.zst": [zstandard.compress(_LINES)],
    "data.npy": [_numpy()],
    "data.json": [json.dumps(_ROWS).encode(), json.dumps(_ROWS, indent=1).encode()],
    "data.csv": [_csv(), _csv().replace(b",", b";")],
    "data.txt": ["\n\n".join(text or "" for text in _TEXTS).encode()],
}
COLUMNS: list[dict[str, str]] = [
    {},
    {"tokens_column": "ids"},
    {"messages_column": "messages"},
    {"prompt_column": "prompt", "completion_column": "answer"},
]
_SHARES = np.random.default_rng(0).dirichlet(np.ones(3), 12)
SWEEP: dict[str, bytes] = {
    "ratios.csv": _sweep(["web", "code", "books"], _SHARES),
    "metrics.csv": _sweep(["web_loss", "code_loss", "seed"], 2 + 0.3 * (_SHARES + 0.1) ** -0.5),
}
_LAYER = "base_model.model.layers.0.q_proj.lora_"
PROBE: dict[str, bytes] = {
    "adapter_model.safetensors": save(
        {f"{_LAYER}A.weight": np.ones((4, 8), np.float32), f"{_LAYER}B.weight": np.ones((8, 4), np.float32)}
    ),
    "adapter_config.json": json.dumps(
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    ).encode(),
    "probe.json": json.dumps(
        {"name": "code", "data": {"code": 1.0}, "tokens": 5, "seconds": 1.0, "flops": 2.0, "losses": [1.0]}
    ).encode(),
}
