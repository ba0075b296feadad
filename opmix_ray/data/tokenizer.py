"""Tokenizers: load the one a run names, or train a byte-level BPE; text into ids.

    tokenizer = load_tokenizer(config)
    encode = Encoder(tokenizer)
    ids = encode.texts(["one", "two"])       # a list of int64 arrays, no special token added

Whatever a user can get wrong is a `UserError` with the key `tokenizer.path`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError, first_line
from opmix_ray.sources.files import InputFile, content_hash, exists, join, local_directory, notes, publish
from opmix_ray.sources.lines import refuse_pointer
from opmix_ray.sources.source import Source, open_source, read_file

END_OF_TEXT = "<|endoftext|>"
PIECE = 1 << 16  # characters of a long text that are tokenised together
BATCH = 1 << 20  # characters tokenised at a time
TRAIN_CHARACTERS = 1 << 22  # characters of each domain that a tokenizer is trained on
VERSION = 1  # of the way tokenizers are trained
KEY = "tokenizer.path"


def load_tokenizer(config: RunConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of a run: the one named, the model's own, or one trained on the domains.

    Raises:
        UserError: none is named, it cannot be loaded, it is not a fast one, or it has no end-of-text token.
    """
    if config.tokenizer.train_vocab_size is not None:
        return load_tokenizer_from(trained_tokenizer(config))
    if config.tokenizer.path is not None:
        path, gguf_file = config.tokenizer.path, config.tokenizer.gguf_file
    elif config.model.path is not None:
        path, gguf_file = config.model.path, config.tokenizer.gguf_file or config.model.gguf_file
    else:
        raise UserError(
            "is missing, and a model with fresh weights has no tokenizer of its own",
            key=KEY,
            remedy="name a tokenizer, or set tokenizer.train_vocab_size to train one on the domains",
        )
    return load_tokenizer_from(path, gguf_file, config.model.trust_remote_code)


def load_tokenizer_from(
    path: str, gguf_file: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a hub id, a directory, a tokenizer.json or a GGUF file.

    Raises:
        UserError: see `load_tokenizer`.
    """
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if looks_local and not Path(path).exists():
        raise UserError("no such file or directory", key=KEY, value=path, remedy="check the path")
    for part in map(Path(path).joinpath, ("", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        if part.is_file():
            refuse_pointer(InputFile(str(part), part.stat().st_size, 0), KEY)
    tokenizer: Any
    try:
        if (file := _lone_json(path)) is not None:
            tokenizer = _from_json(file)
        else:
            options = {"gguf_file": gguf_file} if gguf_file else {}
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # transformers, tokenizers and the hub share no base class
        raise UserError(
            f"cannot be loaded as a tokenizer: {first_line(error)}",
            key=KEY,
            value=path,
            remedy="name a directory with tokenizer.json, such a file, or a hub id within reach",
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "is not a fast tokenizer", key=KEY, value=path, remedy="convert it to a tokenizer.json first"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            "has no end-of-text token, which must stand between documents",
            key=KEY,
            value=path,
            remedy='name its token as "eos_token" in tokenizer_config.json beside it',
        )
    return tokenizer  # type: ignore[no-any-return]


def _lone_json(path: str) -> Path | None:
    """A tokenizer.json, named or alone in its directory; None where the files beside it say more."""
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    known = ("tokenizer_config.json", "config.json")
    if Path(path).is_dir() and any(file.with_name(name).exists() for name in known):
        return None
    return file if file.is_file() else None


def _from_json(file: Path) -> Any:
    """The end-of-text token is what the file beside it says, else it is looked for by the names in use."""
    if file.with_name("tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(str(file.parent))
    backend = Tokenizer.from_file(str(file))
    names = [END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[EOS]"]
    eos = next((name for name in names if backend.token_to_id(name) is not None), None)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose first entry is `<|endoftext|>`; the same texts give the same tokenizer.

    Args:
        texts: what to train on.
        vocab_size: entries, at least 257 (the bytes and the end-of-text token); fewer come out when the texts
            hold too few different words.

    Raises:
        UserError: there is no text.
    """
    pieces = (piece for text in texts for piece in split_text(text) if piece)
    first = next(pieces, None)
    if first is None:
        raise UserError("there is no text to train a tokenizer on", key="tokenizer.train_vocab_size")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain([first], pieces), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def split_text(text: str) -> Iterator[str]:
    """Pieces of at most `PIECE` characters, cut before a space or line end where there is one."""
    start = 0
    while len(text) - start > PIECE:
        half, end = start + PIECE // 2, start + PIECE
        cut = max(text.rfind(" ", half, end), text.rfind("\n", half, end))
        cut = end if cut < 0 else cut
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hex digest of all that decides which ids a text becomes; the same wherever the tokenizer lies."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.update(truncation=None, padding=None)  # set by calls, not part of the tokenizer
    decides: list[Any] = [content, tokenizer.eos_token_id, tokenizer.chat_template]
    if tokenizer.chat_template:  # which may write tokens by their parts: bos_token, pad_token
        decides.append({name: str(token) for name, token in tokenizer.special_tokens_map.items()})
    parts = json.dumps(decides, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Greatest id a text can become, plus 1."""
    return max(tokenizer.get_vocab().values()) + 1


class Encoder:
    """Text into ids, in batches, without truncation and without adding special tokens.

    Args:
        tokenizer: a fast tokenizer with an end-of-text token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        added = tokenizer.added_tokens_decoder.values()
        self.special_tokens = {str(token) for token in added if token.special} | {str(tokenizer.eos_token)}
        self._marked = _plain_backend(tokenizer)
        self._literal = _plain_backend(tokenizer)
        self._literal.encode_special_tokens = True

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, int64; a special token spelt out in a text is ordinary text.

        Long texts are tokenised in pieces, so that memory stays small.
        """
        pieces: list[str] = []
        counts = []
        for text in texts:
            before = len(pieces)
            pieces.extend(split_text(text))
            counts.append(len(pieces) - before)
        encoded = [
            np.array(item.ids, dtype=np.int64)
            for batch in _batches(pieces)
            for item in self._literal.encode_batch_fast(batch, add_special_tokens=False)
        ]
        ids, position = [], 0
        for count in counts:
            parts = encoded[position : position + count]
            ids.append(parts[0] if count == 1 else np.concatenate(parts))
            position += count
        return ids

    def rendered(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text that a chat template wrote, in which special tokens are special.

        Returns:
            ids, int64 of shape (n,), and the characters each one stands for, int64 of shape (n, 2).
        """
        encoded = self._marked.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, dtype=np.int64), np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoder, (self.tokenizer,)


def _batches(pieces: list[str]) -> Iterator[list[str]]:
    """Consecutive pieces, about `BATCH` characters together."""
    batch: list[str] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece)
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, cache: str) -> str:
    """Put a tokenizer into the cache under its fingerprint; returns its directory or URI."""
    path = join(cache, "tokenizers", tokenizer_fingerprint(tokenizer))
    if not exists(join(path, "tokenizer.json")):
        publish(path, partial(_save, tokenizer), last="tokenizer.json")
    return path


def _save(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    tokenizer.save_pretrained(directory)


def load_saved_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer that `save_tokenizer` wrote, from a directory or URI (downloaded once)."""
    return load_tokenizer_from(str(local_directory(path)))


def trained_tokenizer(config: RunConfig) -> str:
    """Train `tokenizer.train_vocab_size` entries on the domains, or find it done; returns a local directory.

    Every domain weighs the same, with the first texts of its files; held-out documents are left out.

    Raises:
        UserError: a domain is unreadable or pre-tokenised.
    """
    size = config.tokenizer.train_vocab_size
    assert size is not None
    sources = [open_source(source, f"data.domains.{name}") for name, source in config.data.domains.items()]
    for source in sources:
        if source.kind == "tokens":
            raise UserError(
                "cannot train a tokenizer on a domain that is already tokenised",
                key="tokenizer.train_vocab_size",
                value=size,
                remedy=f"name the tokenizer that {source.key} was made with as tokenizer.path",
            )
    memory = notes(config.data.cache)
    contents = [
        [source.recipe(), source.formats(), *(content_hash(file, memory) for file in source.files)]
        for source in sources
    ]
    parts = json.dumps([VERSION, size, config.data.eval_fraction, contents])
    name = f"bpe-{size}-{hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()}"
    path = join(config.data.cache, "tokenizers", name)

    def make(directory: Path) -> None:
        texts = [list(_training_texts(source, config.data.eval_fraction)) for source in sources]
        longest = max(sum(map(len, domain)) for domain in texts)
        train_bpe(equal_parts(texts, longest), size).save_pretrained(directory)

    if not exists(join(path, "tokenizer.json")):
        publish(path, make, last="tokenizer.json")
    return str(local_directory(path))


def _training_texts(source: Source, eval_fraction: float) -> Iterator[str]:
    left = TRAIN_CHARACTERS
    for file in source.files:
        for document in read_file(source, file):
            if document is None or document.digest() < eval_fraction * 2.0**64:
                continue
            for text in document.texts():
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    return


def equal_parts(texts: Iterable[list[str]], size: int) -> Iterator[str]:
    """The same number of characters of every domain; a domain with fewer is gone through again and again.

    Args:
        texts: the texts of each domain.
        size: characters of each domain.

    Raises:
        UserError: a domain has no text.
    """
    for domain in texts:
        if not any(domain):
            raise UserError("a domain has no text to train a tokenizer on", key="tokenizer.train_vocab_size")
        left = size
        for text in itertools.cycle(domain):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break
