"""The parts of a configuration about data: domains, what a run goes on from, and evaluation sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opmix_ray.config.section import PathKey, Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # safe as a file name and as a column name
Name = Annotated[str, Field(pattern=NAME)]
BuiltInFormat = Literal[
    "auto", "jsonl", "json", "csv", "text", "parquet", "arrow", "hf", "megatron", "tokens"
]


class SourceConfig(Section):
    """Where text or tokens lie, and how they are read."""

    path: PathKey | list[PathKey] = Field(
        description="File, directory, glob or any `pyarrow.fs` URI; several as a list."
    )
    format: str = Field(
        "auto",
        description="`auto` goes by the file ending: .jsonl, .parquet, .arrow, .json (an array or objects), .csv, .txt "
        "and other `text` (cut at blank lines), lines and text also with .gz, .zst, .bz2 or .xz, a directory "
        "written by `datasets.save_to_disk` (`hf`), .bin with an .idx beside it or the prefix of both "
        "(`megatron`), other .bin and .npy (`tokens`: raw token ids); or one that another package brings "
        "(docs/plugins.md).",
    )
    text_column: str = Field(
        "text", description="Column that holds the text of a document; `doc.text` is `text` inside `doc`."
    )
    prompt_column: str | None = Field(
        None, description="Instruction data: column of the prompt; needs `completion_column`."
    )
    completion_column: str | None = Field(
        None, description="Instruction data: column of the answer; only its tokens count in the loss."
    )
    messages_column: str | None = Field(
        None,
        description="Instruction data: column of chat messages, rendered with the tokenizer's chat template; only "
        "the assistant's tokens count in the loss.",
    )
    tokens_column: str | None = Field(
        None, description="Pre-tokenised data: column of token ids (for example `input_ids`)."
    )
    token_dtype: Literal["uint16", "uint32"] | None = Field(
        None,
        description="Type of the ids in raw .bin and .npy files without a header. None: what each file "
        "proves; one that proves nothing is refused.",
    )


class DomainConfig(SourceConfig):
    """A domain: where its text or tokens lie, and what bounds its share."""

    max_epochs: float | None = Field(
        None,
        gt=0,
        description="How often the domain may be read, earlier runs included; none: no limit.",
    )
    min_share: float = Field(0.0, ge=0, le=1, description="Least share that a decision may give this domain.")
    max_share: float = Field(
        1.0, ge=0, le=1, description="Greatest share that a decision may give this domain."
    )
    group: str | None = Field(None, description="Group for the `grouped` search space.")
    renamed_from: str | None = Field(
        None, description="Name of this domain in an earlier run; it is read on from where it stood."
    )
    split_from: str | None = Field(
        None,
        description="Domain of an earlier run that this one is a part of: it takes over its part of that domain's "
        "share and begins after as many passes.",
    )

    @property
    def earlier_names(self) -> list[str]:
        """Earlier domains that this one comes from; `check_plan` refuses more than one."""
        return [name for name in (self.renamed_from, self.split_from) if name is not None]


class DataConfig(Section):
    """Domains and how they become token sequences."""

    domains: dict[Name, DomainConfig] = Field(min_length=1, description="The domains, by name.")
    seq_len: int = Field(1024, ge=8, description="Tokens in one sequence.")
    eval_fraction: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share of each domain's documents that is held out. A hash of the document chooses them, and "
        "near-duplicates stay together. A domain that would get less than one sequence holds out the documents with "
        "the smallest hashes.",
    )
    cache: PathKey = Field(
        "~/.cache/opmix_ray",
        description="Where prepared token shards are kept: a directory or URI that every machine can read.",
    )


class BaseConfig(Section):
    """What a run continues: an earlier run, or a model whose old mixture is known."""

    run: PathKey | None = Field(
        None,
        description="Output of a finished run, as with `opmix run --continue`: its model, tokenizer, mixture and the "
        "reading positions of its domains.",
    )
    mixture: dict[str, float] | PathKey | None = Field(
        None,
        description="What the model was trained on before, where no `run` says it: shares by domain, or a file with "
        "them (a `mixture.json`, or one of another trainer). Domains that are gone are left out.",
    )
    mixture_unit: Literal["tokens", "documents"] | None = Field(
        None,
        description="What the numbers of `mixture` count. Documents become tokens by the measured mean lengths. "
        "None: what the file's format counts; tokens for shares given here.",
    )
    optimizer: bool = Field(
        True, description="Take over the optimiser's moments if the earlier run still has them."
    )


class EvaluationSetConfig(SourceConfig):
    """A set that is only evaluated on, by loss or by the rate of wrong answers."""

    metric: Literal["loss", "choice", "exact_match"] = Field(
        "loss",
        description="`loss`: nats per token. `choice`: how often the most likely choice is wrong. `exact_match`: how "
        "often a greedy continuation is wrong. Both rates lie in [0, 1] and enter the objective as they are.",
    )
    choices_column: str | None = Field(None, description="`choice`: column with a list of texts.")
    answer_column: str | None = Field(
        None,
        description="`choice`: column of the right one's position from 0, letter or text; `exact_match`: column of "
        "the answer's text.",
    )
    chat: bool = Field(False, description="Put the prompt as a user's message into the chat template.")
    length_normalised: bool = Field(
        False, description="`choice`: compare log-likelihoods per byte of text instead of their sums."
    )
    max_new_tokens: int = Field(32, ge=1, description="`exact_match`: longest continuation.")


class HarnessConfig(Section):
    """Tasks of lm-evaluation-harness (`opmix_ray[lm-eval]`), run on the model at the end of a run."""

    tasks: list[str] = Field(min_length=1, description="Names of tasks, groups or tags.")
    include_path: PathKey | None = Field(None, description="Directory with YAML files of tasks of your own.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples in a prompt; none: as the task says.")
    limit: int | None = Field(None, ge=1, description="Questions of each task; none: all.")


class EvaluationConfig(Section):
    """Held-out sets that are reported and that the decision minimises."""

    sequences: int = Field(64, ge=1, description="Held-out sequences or questions per set used in reports.")
    batch_size: int = Field(
        16, ge=1, description="Held-out sequences in one forward pass, in reports, trials and `harness`."
    )
    sets: dict[Name, EvaluationSetConfig] = Field(
        default_factory=dict, description="Further sets that are only evaluated on, never trained on."
    )
    weights: dict[str, float] | None = Field(
        None,
        description="Weight of each set in the objective; none: all weigh the same. A domain that comes in a later "
        "stage has no weight in the decisions before it.",
    )
    harness: HarnessConfig | None = Field(
        None, description="Tasks for the finished model; they are reported, and no decision looks at them."
    )
    objective: str = Field(
        "loss",
        description="What is minimised: `loss`, the weighted mean of the sets' losses; `perplexity`, that of their "
        "perplexities, in which a set of high loss counts for more; `bits_per_byte`, that of loss / ln 2 / bytes per "
        "token, which does not depend on the tokenizer; or an objective of another package, instead of `weights` "
        "(docs/plugins.md).",
    )
    limits: dict[str, Annotated[float, Field(strict=True)] | str] = Field(
        default_factory=dict,
        description="Ceilings on sets that must not get worse: the greatest loss at the stage's end in nats per token "
        "(3.2), or relative to the loss at the decision: `+1 %`, or `now`. They are kept with 95 % confidence; where "
        "no mixture does, with 80 or 50 %; else within a tenth of the nearest. A set with a limit need no weight.",
    )
