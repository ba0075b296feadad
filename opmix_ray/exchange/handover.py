"""What is handed over to another trainer, and what all its formats share: entries with weights, places of data."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from opmix_ray.errors import UserError
from opmix_ray.harmless import visible
from opmix_ray.mixture import Mixture
from opmix_ray.paths import BIN, IDX, Kind, file_format, is_uri
from opmix_ray.version import __version__

Unit = Literal["tokens", "documents"]


class Described(Protocol):
    """What a configuration says about a domain's data."""

    @property
    def path(self) -> str | list[str]: ...
    @property
    def format(self) -> str: ...
    @property
    def text_column(self) -> str: ...
    @property
    def prompt_column(self) -> str | None: ...
    @property
    def completion_column(self) -> str | None: ...
    @property
    def messages_column(self) -> str | None: ...
    @property
    def tokens_column(self) -> str | None: ...
    @property
    def max_epochs(self) -> float | None: ...


class File(Protocol):
    """A file that was found."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...


class Found(Protocol):
    """A domain's data with their files found."""

    @property
    def kind(self) -> Kind: ...
    @property
    def files(self) -> Sequence[File]: ...
    @property
    def companions(self) -> Sequence[File]: ...


@dataclass(frozen=True)
class Part:
    """One domain of a mixture.

    Args:
        name: of the domain.
        share: of training tokens, above 0.
        source: where its data are; None where that is not known.
        opened: the source with its files found; None where they are not reached from here.
        paths: where the target finds them, said by the user; empty: where `source` says.
        documents: training documents that were counted; None: not counted.
        tokens: training tokens that these are.
    """

    name: str
    share: float
    source: Described | None = None
    opened: Found | None = None
    paths: tuple[str, ...] = ()
    documents: int | None = None
    tokens: int | None = None

    @property
    def kind(self) -> Kind:
        """What a document is; of token ids that lie elsewhere for the target, only their text is of use there."""
        source = self.source
        if source is None:
            return "text"
        if source.messages_column is not None:
            return "messages"
        if source.completion_column is not None:
            return "prompt"
        ids = self.opened.kind if self.opened is not None else "tokens" if _holds_ids(source) else "text"
        return "tokens" if ids == "tokens" and not self.paths else "text"

    @property
    def indexed(self) -> bool:
        """Whether its data are Megatron's `.bin` and `.idx` files."""
        found = self.opened is not None and bool(self.opened.companions)
        return found or (self.source is not None and self.source.format == "megatron")

    def where(self) -> list[str]:
        """Paths, globs, directories or URIs of its data; a URI without the query, which is for `pyarrow.fs` alone.

        Raises:
            UserError: nobody has said where they are.
        """
        if self.paths:
            return list(self.paths)
        if self.source is None:
            raise UserError(
                "nothing says where its data are",
                key=self.name,
                remedy=f"give the run's configuration with --config, or --path {self.name}=PATH",
            )
        paths = [self.source.path] if isinstance(self.source.path, str) else self.source.path
        return [without_query(path) for path in paths]

    def tokens_per_document(self) -> float:
        """Mean length of a training document, tokens.

        Raises:
            UserError: its documents were not counted.
        """
        if not self.documents or not self.tokens:
            raise UserError(
                "its documents were not counted, so shares of tokens cannot become shares of documents",
                key=self.name,
                remedy="give the run's configuration with --config, or --unit tokens",
            )
        return self.tokens / self.documents


@dataclass(frozen=True)
class Handover:
    """A mixture on its way to another trainer.

    Args:
        origin: where it comes from, in words.
        parts: domains with a share above 0; the shares sum to 1.
        place: local directory that the files are written to, if it is one.
        seed: of everything random.
        planned_tokens: that the mixture is meant for; None: not known.
        sweep: content of `ratios.csv` and `metrics.csv` of the decision behind the mixture, if there was one.
        kl: weight of the KL term of that decision.
    """

    origin: str
    parts: tuple[Part, ...]
    place: str | None = None
    seed: int = 0
    planned_tokens: int | None = None
    sweep: tuple[str, str] | None = None
    kl: float | None = None

    def weights(self, unit: Unit) -> dict[str, float]:
        """Weight of each domain, summing to 1, where every draw is a token, or a document.

        A document of domain d comes `share_d / tokens per document of d` times per token, so that the drawn documents
        hold the shares of tokens.
        """
        shares = {part.name: part.share for part in self.parts}
        if unit == "documents":
            shares = {part.name: part.share / part.tokens_per_document() for part in self.parts}
        return Mixture(shares).shares

    def words(self, unit: Unit, weight: str) -> list[str]:
        """Lines for the head of a file: where it comes from and what its numbers count."""
        lines = [f"Mixture of {self.origin}, by opmix_ray {__version__}."]
        if unit == "tokens":
            return [*lines, f"`{weight}` is the share of training tokens."]
        return [
            *lines,
            f"`{weight}` counts documents: share of training tokens / measured tokens per document, normalised.",
            *(
                f"  {part.name}: {part.share:.6g} of the tokens, {part.tokens_per_document():.6g} tokens per document"
                for part in self.parts
            ),
        ]


@dataclass(frozen=True)
class Written:
    """Files of an export.

    Args:
        files: content by name.
        notes: what a person still has to do before the target can train, in words.
    """

    files: Mapping[str, str]
    notes: list[str] = field(default_factory=list)


FIXED_LENGTH = "Where every sample is a sequence of the same length instead, export again with --unit tokens."


def without_query(path: str) -> str:
    """A path, or a URI without its query."""
    return path.partition("?")[0] if is_uri(path) else path


def comment(lines: list[str]) -> str:
    """Lines as comments of YAML or Python."""
    shown = [
        visible(line).replace("\n", "\\n").replace("\t", " ") for line in lines
    ]  # a name may hold a line's end
    return "".join(f"# {line}\n" if line else "#\n" for line in shown)


def number(value: float) -> float:
    """A weight as it is written: twelve digits, so that weights still sum to 1 for every reader."""
    return float(f"{value:.12g}")


def refuse_kinds(handover: Handover, target: str, kinds: tuple[Kind, ...]) -> None:
    """Refuse domains whose documents the target cannot read.

    Raises:
        UserError: names the first such domain and what it holds.
    """
    holds = {"text": "text", "prompt": "prompts and answers", "messages": "chats", "tokens": "token ids"}
    for part in handover.parts:
        if part.kind not in kinds:
            ids = part.kind == "tokens"
            raise UserError(
                f"{target} cannot read {holds[part.kind]}",
                key=f"data.domains.{part.name}",
                remedy=f"name its text with --path {part.name}=FILES"
                if ids
                else "export for another trainer",
            )


def _holds_ids(source: Described) -> bool:
    paths = [source.path] if isinstance(source.path, str) else source.path
    named = all(path.partition("?")[0].endswith((".npy", ".bin")) for path in paths)
    return source.tokens_column is not None or source.format in ("tokens", "megatron") or named


@dataclass(frozen=True)
class SourceWeight:
    """A weight and what it is for.

    Args:
        name: what the file calls it.
        paths: where the file says that its data are; may be empty.
        weight: in the file's own unit.
    """

    name: str
    paths: tuple[str, ...]
    weight: float


def as_weight(value: Any) -> float:
    """A weight as a finite number of at least 0.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a weight must be a number, not {value!r}")
    found = float(value)
    if not math.isfinite(found) or found < 0:
        raise ValueError(f"a weight must be a finite number of at least 0, not {value!r}")
    return found


def constant(tree: ast.Module, name: str) -> Any:
    """The value of a module's constant of that name; None where it has none that is plain."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError:
                return None
    return None


@dataclass(frozen=True)
class Place:
    """A file or directory, and its part of the domain's data by size."""

    path: str
    part: float


def files(part: Part) -> list[Place]:
    """The files of a domain; one that is named by a single plain path need not be there.

    Raises:
        UserError: several, a glob or a directory are named, and they are not reached from here.
    """
    paths = part.where()
    if part.paths:
        return [Place(path, 1 / len(paths)) for path in paths]
    if part.opened is not None:
        total = sum(file.size for file in part.opened.files) or 1
        found = [file for file in part.opened.files if file.size]
        return [Place(without_query(file.path), file.size / total) for file in found]
    if len(paths) > 1 or not _is_file(paths[0]):
        raise UserError(
            "its files are not reached from here, so they cannot be listed",
            key=f"data.domains.{part.name}.path",
            value=", ".join(paths),
            remedy=f"export where they are, or name one with --path {part.name}=FILE",
        )
    return [Place(paths[0], 1.0)]


def _is_file(path: str) -> bool:
    return "*" not in path and file_format(path) is not None


def reader(path: str) -> str | None:
    """The builder of Hugging Face `datasets` that reads a file; None where there is none."""
    if path.endswith(".json"):
        return "json"
    return {
        "jsonl": "json",
        "json": "json",
        "csv": "csv",
        "text": "text",
        "parquet": "parquet",
        "arrow": "arrow",
    }.get(str(file_format(path)))


def prefix(path: str) -> str:
    """A Megatron data set's prefix: the path without `.bin` or `.idx`."""
    return path.removesuffix(BIN).removesuffix(IDX)


def stem(path: str) -> str:
    """A path without its file endings, globs and trailing slash: where a converted copy usually lies."""
    head, name = path.rstrip("/").rpartition("/")[::2]
    while "*" in name or (not name and head):
        head, name = head.rstrip("/").rpartition("/")[::2]
    base = name if name.startswith(".") else name.partition(".")[0]
    return f"{head}/{base}" if head or is_uri(path) or path.startswith("/") else base
