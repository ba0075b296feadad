"""What the columns of a table say by their names: a metric, which way it is better, what a run was, which run it is.

And rows of two tables joined by their runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.exchange.csv_table import CsvTable, plain, read_count


def set_of(text: str) -> frozenset[str]:
    """Words, separated by spaces."""
    return frozenset(text.split())


# Words of metrics that are better when higher, and when lower; the lower ones decide where both occur.
HIGHER = set_of(
    "acc accuracy accuracies f1 bleu sacrebleu rouge rouge1 rouge2 rougel rougelsum em match score scores reward "
    "rewards return returns precision recall auc auroc auprc roc mcc chrf meteor bertscore comet ndcg mrr pass win "
    "wins winrate elo correct solved success likelihood loglikelihood logprob logprobs logp correlation corr "
    "pearson spearman kendall kappa r2 iou dice psnr ssim hit hits agreement rating ratings utility bleurt mauve "
    "passed resolved points ap rr quality top1 top5 top10 mc1 mc2"
)
LOWER = set_of(
    "loss losses lossy ppl perplexity perplexities bpb bpc bpt bpw bits nats nll nllh ce xent entropy crossentropy "
    "error errors err wer cer ter mse rmse mae brier ece kl regret fid divergence toxicity negative neg minus mape "
    "surprisal deviance cost"
)
# Benchmarks, whose names say no direction: what is measured on them is mostly a rate of right answers.
BENCHMARKS = set_of(
    "mmlu mmlupro cmmlu hellaswag arc winogrande piqa boolq gsm8k gsm humaneval mbpp truthfulqa triviaqa naturalqs nq "
    "openbookqa obqa siqa socialiqa csqa commonsenseqa sciq race squad drop coqa lambada bbh agieval gpqa ifeval "
    "copa rte wic wsc cb mrpc qqp sst mnli qnli cola glue superglue math aime svamp mathqa medqa medmcqa pubmedqa "
    "logiqa ceval mgsm xnli xcopa quac hotpotqa musr bench benchmark benchmarks mtbench alpacaeval arena livecodebench"
)
# Those with a few answers to choose from: by chance already more than 8 % are right.
OF_CHOICE = set_of(
    "mmlu cmmlu hellaswag arc winogrande piqa boolq openbookqa obqa siqa socialiqa csqa commonsenseqa sciq race "
    "agieval gpqa copa rte wic wsc cb mrpc qqp sst mnli qnli glue superglue medqa medmcqa pubmedqa logiqa ceval "
    "xnli xcopa"
)
BENCHMARK_PAIRS = frozenset(
    {("human", "eval"), ("alpaca", "eval"), ("trivia", "qa"), ("natural", "questions")}
)
# Last words of columns that book what a run was, whatever their values.
BOOKKEEPING = set_of(
    "seed seeds rng step steps epoch epochs iteration iterations iter iters lr runtime timestamp walltime "
    "throughput flops tflops flop mfu warmup dropout uid uuid seconds secs elapsed eta stderr bsz momentum beta1 "
    "beta2 fewshot wd ckpt pid gpus cpus devices nodes bootstrap params parameters time hours minutes duration "
    "date price std sem variance var flos kwh usd eur coef coeff coefficient weight eps epsilon decay smoothing "
    "clip clipping temperature util utilization utilisation alpha beta gamma lambda tau theta sigma sec scale "
    "gb mb gib mib nparams numparams ntokens numtokens"
)
UNITS_OF = {  # words that end a name, or begin it, and say what its numbers count
    **dict.fromkeys(set_of("k thousand thousands"), 1e3),
    **dict.fromkeys(set_of("m mm mio million millions"), 1e6),
    **dict.fromkeys(set_of("b bn billion billions"), 1e9),
}
COUNTED = set_of("size sizes params param parameters parameter nparams numparams tokens model scale")
# Words and pairs of words that say the same wherever they stand in a name without a word of a metric.
ANYWHERE = set_of("seed rng lr flops tflops flos warmup dropout runtime timestamp mfu tokens throughput")
PAIRS = frozenset(
    {
        ("learning", "rate"), ("dropout", "rate"), ("sampling", "rate"), ("grad", "norm"), ("gradient", "norm"),
        ("weight", "decay"), ("batch", "size"), ("model", "size"), ("vocab", "size"), ("world", "size"),
        ("wall", "time"), ("wall", "clock"), ("std", "err"), ("standard", "error"), ("per", "second"),
        ("per", "sec"), ("seq", "len"), ("sequence", "length"), ("context", "length"), ("gpu", "hours"),
        ("inference", "time"),
        ("loss", "scale"), ("tokens", "seen"), ("train", "time"), ("training", "time"), ("max", "steps"),
        ("relative", "time"), ("beta", "1"), ("beta", "2"), ("power", "w"), ("tok", "s"), ("it", "s"),
        ("ci", "low"), ("ci", "high"), ("ci", "lower"), ("ci", "upper"), ("mixture", "entropy"), ("of", "mixture"),
    }
)  # fmt: skip
# Last words of columns that are bookkeeping where they hold whole numbers.
COUNTS = set_of(
    "token tokens size sizes batch bs memory mem gpu cpu device node rank id ids "
    "idx index n row rows trial number no nr num count counts version port job attempt layers heads depth width dim "
    "hidden vocab length len context examples samples documents docs shot shots cost checkpoint workers "
    "threads created started finished updated round rounds repeat replicate group fold"
)
AREAS = set_of("config cfg hparams hyperparameters hyperparams args params system sys wandb tags meta")
# Words written as one: `exactmatch`, `f1score`, `webacc`, `errorrate`, `valloss`.
_JOINED_UP = re.compile(
    r"(acc|accnorm|accuracy|accuracies|scores?|rewards?|recall|precision|bleu|rouge[12l]?|chrf|bertscore|auc|auroc|mcc|f1|"
    r"(exact|quasi|prefix|string|fuzzy)_?match(es|ed)?|(pass|win|match|hit|success|solve|solved|answer|accept\w*)rates?|"
    r"^(pass|hits?|recall|precision|ndcg|top|mrr|bleu|map)(at)?(k|\d+))$"
)
_JOINED_DOWN = re.compile(
    r"((error|err|fail|failure|miss|mismatch|loss|toxic\w*|halluc\w*|refusal)rates?|mismatch(es)?|"
    r"(?<=..)(ppl|nll|bpb|perplexity|entropy|error|errors)|(?<=[a-z]{3})loss(es)?)$"
)
_NOT = re.compile(r"^(in|un|non|mis|dis)(acc|match|correct)")
_CAPITALS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MARKS = re.compile(r"[\W_]+")  # letters of any script are no marks


def words(name: str) -> list[str]:
    """The words of a name, in small letters."""
    return [word.lower() for word in _MARKS.split(_CAPITALS.sub(" ", name)) if word]


def _ways(name: str) -> tuple[bool, bool]:
    """Whether a word of the name is one of a metric that is better when higher, and when lower."""
    found = words(name)
    up = any(word in HIGHER or (_JOINED_UP.search(word) and not _NOT.match(word)) for word in found)
    return up, any(word in LOWER or _JOINED_DOWN.search(word) or _NOT.match(word) for word in found)


def is_metric(name: str) -> bool:
    """Whether a word of the name is one of a metric."""
    return any(_ways(name))


def is_higher_better(name: str) -> bool:
    """Whether the name says so: an accuracy, a score, a reward, and no word of a loss."""
    up, down = _ways(name)
    return up and not down


def is_benchmark(name: str) -> bool:
    """Whether the name is one of a benchmark and says no direction."""
    found = words(name)
    inside = set(found) & BENCHMARKS or set(pairwise(found)) & BENCHMARK_PAIRS
    return bool(inside) and not is_metric(name)


def benchmark_rates(metric_names: Sequence[str], metrics: np.ndarray) -> tuple[list[str], list[str]]:
    """Metrics called after benchmarks: those whose values are rates, and those of which these do not tell.

    Rates lie within 0 to 1, or reach beyond 20 up to 100. A loss or bits per byte is hardly above 8. That is less than
    chance where there are answers to choose from, so these are losses between 1 and 8; where three of them are, the
    other benchmarks up to 8 are losses too.
    """
    rates, doubtful, losses = list[str](), list[str](), 0
    for place, name in enumerate(metric_names):
        known = metrics[:, place][np.isfinite(metrics[:, place])]
        if not len(known) or not is_benchmark(name):
            continue
        if known.min() >= 0 and (known.max() <= 1 or 20 < known.max() <= 100):
            rates.append(name)
        elif known.min() > 0 and known.max() <= 8 and set(words(name)) & OF_CHOICE:
            losses += 1
        else:
            doubtful.append(name)
    if losses >= 3 and not rates:
        at = {name: metrics[:, place] for place, name in enumerate(metric_names)}
        doubtful = [name for name in doubtful if np.nanmin(at[name]) <= 0 or np.nanmax(at[name]) > 8]
    return rates, doubtful


_OF_TRAINING = set_of(
    "train training loss losses ce ppl perplexity lm step epoch mean avg average final last smoothed"
)


def is_training_loss(name: str) -> bool:
    """Whether the name is that of a loss on what a run trained on, which tells nothing between mixtures."""
    found = set(words(name)) - set(AREAS) - {"summary", "metrics", "metric"}
    return bool(found & {"train", "training"} and found & LOWER) and found <= _OF_TRAINING


def unsaid_notes(metric_names: Sequence[str], maximised: Collection[str]) -> list[str]:
    """Of which metrics lower was taken to be better although their names do not say so."""
    unsaid = [n for n in metric_names if n not in maximised and not _ways(n)[1]]
    if not unsaid:
        return []
    more = f" and {len(unsaid) - 3} more" if len(unsaid) > 3 else ""
    shown = ", ".join(f"`{name}`" for name in unsaid[:3])
    return [f"lower is taken to be better for {shown}{more}: the name does not say; else give --maximise"]


def bookkeeping(name: str) -> str | None:
    """Why a column of this name books what a run was, whatever it holds; None: its name does not say so."""
    found = words(name)
    if name.startswith("_"):
        return "names that begin with _ are a tracker's own"
    if not name.strip():
        return "it has no name"
    if not found:
        return None
    if found[0] in AREAS and len(found) > 1:
        return f"`{found[0]}` holds a run's settings"
    if re.search(r"[./]", name) and (area := next((w for w in found[:-1] if w in AREAS), None)):
        return f"`{area}` holds a run's settings"
    if re.search(r".__(MIN|MAX)$", name):
        return "it is a tracker's range of another column"
    if re.fullmatch(r"unnamed: ?\d+|level_\d+|column ?\d+|\.\.\.\d+", name.lower()):
        return "it is an index that was saved with the table"
    if len(found) > 1 and found[-1] in UNITS_OF and found[-2] in COUNTED:  # `params (M)`
        found = found[:-1]
    last = next((word for word in reversed(found) if not word.isdigit() and word != "none"), found[-1])
    end = tuple(found[-2:])
    # `val_loss_step`, `val_loss_epoch` and `loss_seed_1` are losses
    if last in ("step", "epoch", "seed") and is_metric(name):
        return None
    pairs = set(pairwise(found))
    if (
        last in BOOKKEEPING
        or end in PAIRS
        or (not is_metric(name) and (ANYWHERE & set(found) or PAIRS & pairs))
    ):
        return "by its name it is no metric"
    return None


def counts(name: str) -> bool:
    """Whether whole numbers under this name are a count or a number of something."""
    found = words(name)
    return bool(found) and (
        found[-1] in COUNTS | BOOKKEEPING or found[0] in ("n", "num", "number", "count", "total")
    )


KEYS = (("run", "run_id"), ("index",), ("name",))  # what rows are joined by, the best first
RUN_NAMES = {name for group in KEYS for name in group}
STATES = (["state"], ["status"])  # last words of a column of states
SEEDS = frozenset(["seed", "seeds", "replicate", "repeat", "repetition"])  # last words of their columns
MODELS = set_of(
    "model size sizes scale arch architecture params parameters backbone"
)  # of columns of model sizes
RUN_WORDS = (["run"], ["run", "id"], ["run", "name"])  # the same in other spellings: `Run ID`


def join_columns(ratios: CsvTable, metrics: CsvTable) -> tuple[str, str] | None:
    """The column of each file to join by: the first kind that both have and that names every row once.

    None where both are one file that names no runs: a line is a run.

    Raises:
        UserError: there is none.
    """
    doubled: UserError | None = None
    for group in KEYS:
        pair = [
            next((name for wanted in group for name in table.header if name.lower() == wanted), None)
            for table in (ratios, metrics)
        ]
        if pair[0] is None or pair[1] is None:
            continue
        faults = [_doubled(ratios, pair[0]), _doubled(metrics, pair[1])]
        if not any(faults):
            return pair[0], pair[1]
        doubled = doubled or next(fault for fault in faults if fault)
    if doubled:
        raise doubled
    if one_file(ratios, metrics):
        return None
    turned = next(
        (pair for pair in ((ratios, metrics), (metrics, ratios)) if _has_runs_as_columns(*pair)), None
    )
    if turned is not None:
        raise UserError(
            f"has columns for runs of {turned[1].path.name}", file=turned[0].path,
            remedy="turn the table: one line per run, its name in a column `run`",
        )  # fmt: skip
    raise UserError(
        f"shares no column with {metrics.path.name} to join runs by",
        file=ratios.path,
        remedy="give both files a column `run` (or `run_id`, `index`, `name`)",
    )


def _has_runs_as_columns(table: CsvTable, other: CsvTable) -> bool:
    """Whether columns of a table are called like another's runs: `r0`, or `r0 - eval/loss` in a tracker's chart."""
    heads = {name.partition(" - ")[0] for name in table.header}
    return any(len(heads & set(other.column(name))) > 2 for name in other.header if other.is_text(name))


def keyed(ratios: CsvTable, metrics: CsvTable) -> tuple[CsvTable, CsvTable]:
    """Both tables with the column that names the runs called `run`.

    That is `Run ID` or the like; else the first column of both whose cells name every row once and are alike in both;
    else `run` of one and `Name` of the other, where their cells do.
    """
    tables = []
    for table in (ratios, metrics):
        known = any(name.lower() in group for group in KEYS for name in table.header)
        own = None if known else next((name for name in table.header if words(name) in RUN_WORDS), None)
        tables.append(table if own is None else table.called(own, "run"))
    first, second = tables
    if one_file(first, second):
        return first, second
    if any(all(any(n.lower() in group for n in table.header) for table in tables) for group in KEYS):
        return first, second
    for place, name in enumerate(first.header):
        if name in second.header and (name or place == second.header.index(name) == 0):
            here, there = first.column(name), second.column(name)
            parts = any("." in cell for cell in here) and not first.is_text(name)
            if not parts and _same_runs(here, there):
                told = (
                    f"the runs are joined by {f'`{name}`' if name else 'the first column, which has no name'}"
                )
                return replace(first.called(name, "run"), notes=[*first.notes, told]), second.called(
                    name, "run"
                )
    for one, other in product(*([n for n in table.header if n.lower() in RUN_NAMES] for table in tables)):
        if _same_runs(first.column(one), second.column(other)):
            told = f"`{one}` of {first.path.name} names the runs as `{other}` of {second.path.name}"
            return replace(first.called(one, "run"), notes=[*first.notes, told]), second.called(other, "run")
    return first, second


def _same_runs(here: Sequence[str], there: Sequence[str]) -> bool:
    """Whether cells of two columns name every row once, and most of the first stand in the second."""
    once = len(set(here)) == len(here) and len(set(there)) == len(there)
    return once and len(set(here) & set(there)) > len(here) / 2


def wide(table: CsvTable) -> CsvTable:
    """A table with a line for every run and domain, or run and metric, as one with a line a run; others as they are.

    One column names the runs, several times each; columns of words tell the lines of a run apart; one holds numbers.
    Seeds and model sizes of a run stay lines of their own, and what is the same in all lines of a run stays a column.

    Raises:
        UserError: two lines are the same, or several columns of numbers could be meant.
    """
    keys = [name for group in KEYS for name in table.header if name.lower() in group]
    keys += [name for name in table.header if words(name) in RUN_WORDS and name not in keys]
    key = next((name for name in keys if 1 < len(set(table.column(name))) < len(table.rows)), None)
    if key is None:
        return table
    cells = {name: table.column(name) for name in table.header}

    def differs(name: str, within: Sequence[str]) -> bool:
        groups = list(zip(*(cells[each] for each in within), strict=True))
        return len(set(zip(groups, cells[name], strict=True))) > len(set(groups))

    others = [n for n in table.header if n != key and words(n)[-1:] not in STATES and differs(n, [key])]
    texts = [name for name in others if table.is_text(name)]
    seeds = [name for name in others if words(name)[-1:] and words(name)[-1] in SEEDS]
    sized = [
        name for name in others
        if name not in seeds and (MODELS & set(words(name)) or (name in texts and all(map(read_count, cells[name]))))
    ]  # fmt: skip
    kinds = [n for n in texts if n not in [*seeds, *sized] and len(set(cells[n])) < len(table.rows) / 2]
    apart = [key, *seeds, *(n for n in sized if all(differs(n, [kind]) for kind in kinds))]
    runs = list(zip(*(cells[name] for name in apart), strict=True))
    kinds = [name for name in kinds if differs(name, apart)]
    numbers = [
        n for n in others if n not in [*texts, *apart] and n.lower() not in RUN_NAMES and differs(n, apart)
    ]
    held = [name for name in numbers if not bookkeeping(name)] or numbers
    if not kinds or not held or len(set(runs)) == len(runs):
        return table
    lines = list(zip(runs, zip(*(cells[kind] for kind in kinds), strict=True), strict=True))
    if len(set(lines)) < len(lines):
        if len(held) > 1:
            return table
        first_of: dict[object, int] = {}
        place = next(place for place, line in enumerate(lines) if first_of.setdefault(line, place) != place)
        raise UserError(
            f"lines {table.lines[first_of[lines[place]]]} and {table.lines[place]} both hold "
            f"`{'/'.join(lines[place][1])}` of one run", file=table.path, key=key, value=runs[place][0],
            remedy="keep one of them, or tell them apart by a column `seed`",
        )  # fmt: skip
    if len(held) > 1 and not all(map(is_metric, held)):
        raise UserError(
            f"has a line for every run and `{kinds[0]}`, and several columns of numbers: "
            + ", ".join(f"`{name}`" for name in held), file=table.path, remedy="keep one of them",
        )  # fmt: skip
    found = {
        (run, "/".join([*kind, *([name] if is_metric(name) else [])])): cells[name][place]
        for place, (run, kind) in enumerate(lines) for name in held
    }  # fmt: skip
    header = list(dict.fromkeys(name for _, name in found))
    kept = [
        n for n in table.header if n not in [key, *kinds, *header] and (n in apart or not differs(n, apart))
    ]
    first = {run: place for place, run in reversed(list(enumerate(runs)))}
    order = list(dict.fromkeys(runs))
    rows = [
        [
            run[0],
            *(cells[name][first[run]] for name in kept),
            *(found.get((run, name), "") for name in header),
        ]
        for run in order
    ]
    told = " and ".join(f"`{kind}`" for kind in kinds)
    note = f"{table.path.name} has several lines a run: they were put side by side by {told}"
    starts = [table.lines[first[run]] for run in order]
    return replace(table, header=[key, *kept, *header], rows=rows, lines=starts, notes=[*table.notes, note])


def by_seed(ratios: CsvTable, metrics: CsvTable) -> tuple[CsvTable, CsvTable]:
    """Both tables with the seed in a run's name, where runs have a line of metrics for each of several seeds.

    A line of ratios stands once for every seed of its run, unless the ratios say the seed themselves.
    """
    for group in KEYS:
        left, right = (
            next((n for n in table.header if n.lower() in group), None) for table in (ratios, metrics)
        )
        if left is None or right is None or len(set(metrics.column(right))) == len(metrics.rows):
            continue
        seeds = [name for name in metrics.header if words(name)[-1:] and words(name)[-1] in SEEDS]
        values = {name: set(metrics.column(name)) for name in seeds}
        seed = next((n for n, found in values.items() if 1 < len(found) <= len(metrics.rows) / 2), None)
        if seed is None:
            continue
        ends = _seed_ends(metrics, seed)
        told = f"{metrics.path.name} has several seeds of a run (`{seed}`): each is a row of its own"
        said = replace(metrics.renamed(right, ends), notes=[*metrics.notes, told])
        if one_file(ratios, metrics):
            return said, said
        if seed in ratios.header:
            return ratios.renamed(left, _seed_ends(ratios, seed)), said
        return repeated(ratios, left, metrics.column(right), ends), said
    return ratios, metrics


def repeated(ratios: CsvTable, key: str, runs: Sequence[str], ends: Sequence[str]) -> CsvTable:
    """Mixtures with a line for each line of metrics: `runs` name the mixture, `ends` go behind the name."""
    of_run: dict[str, list[str]] = {}
    for run, end in zip(runs, ends, strict=True):
        of_run.setdefault(plain(run), []).append(end)
    found = [
        (place, end)
        for place, run in enumerate(ratios.column(key))
        for end in dict.fromkeys(of_run.get(plain(run), [""]))
    ]
    rows, lines = [ratios.rows[p] for p, _ in found], [ratios.lines[p] for p, _ in found]
    return replace(ratios, rows=rows, lines=lines).renamed(key, [end for _, end in found])


def _seed_ends(table: CsvTable, seed: str) -> list[str]:
    """What is put behind the name of every row's run."""
    return [f" seed {plain(cell)}" if cell else "" for cell in table.column(seed)]


def partners(first: Sequence[str], second: Sequence[str]) -> list[int | None]:
    """For every run of the first list its place in the second, or None."""
    place_of = {run: place for place, run in enumerate(second)}
    found = [place_of.get(run) for run in first]
    open_first = [place for place, partner in enumerate(found) if partner is None]
    taken = set(found)
    open_second = [place for place in range(len(second)) if place not in taken]
    left, right = _by_plain(first, open_first), _by_plain(second, open_second)
    for name, places in left.items():
        there = right.get(name, [])
        if len(places) == 1 and len(there) == 1:
            found[places[0]] = there[0]
    return found


def _by_plain(runs: Sequence[str], places: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place in places:
        found.setdefault(plain(runs[place]), []).append(place)
    return found


def run_names(table: CsvTable, key: str | None) -> list[str]:
    """The name of every row's run; none: its line."""
    return table.column(key) if key is not None else [f"line {line}" for line in table.lines]


def _doubled(table: CsvTable, key: str) -> UserError | None:
    first: dict[str, int] = {}
    for line, run in zip(table.lines, table.column(key), strict=True):
        if not run:
            return UserError(f"line {line} names no run", file=table.path, key=key, remedy="fill it in")
        if run in first:
            return UserError(
                f"lines {first[run]} and {line} are the same run",
                file=table.path,
                key=key,
                value=run,
                remedy="keep one line per run, or give each a name of its own, such as r0-1",
            )
        first[run] = line
    return None


def one_file(first: CsvTable, second: CsvTable) -> bool:
    """Whether two tables are the same file."""
    try:
        return first.path.samefile(second.path)
    except OSError:  # gone since it was read, or not a local one
        return first.path == second.path
