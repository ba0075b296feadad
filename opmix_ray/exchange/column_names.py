"""What the names of a table's columns say: a metric, which way it is better, or what a run was."""

from __future__ import annotations

import re
from itertools import pairwise


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of metrics that are better when higher, and when lower; the lower ones decide where both occur.
HIGHER = _set(
    "acc accuracy accuracies f1 bleu sacrebleu rouge rouge1 rouge2 rougel rougelsum em match score scores reward "
    "rewards return returns precision recall auc auroc auprc roc mcc chrf meteor bertscore comet ndcg mrr pass win "
    "wins winrate elo correct solved success likelihood loglikelihood logprob logprobs logp correlation corr "
    "pearson spearman kendall kappa r2 iou dice psnr ssim hit hits agreement rating ratings utility bleurt mauve "
    "passed resolved points ap"
)
LOWER = _set(
    "loss losses lossy ppl perplexity perplexities bpb bpc bpt bpw bits nats nll nllh ce xent entropy crossentropy "
    "error errors err wer cer ter mse rmse mae brier ece kl regret fid divergence toxicity negative neg minus mape "
    "surprisal deviance cost"
)
# Last words of columns that book what a run was, whatever their values.
BOOKKEEPING = _set(
    "seed seeds rng step steps epoch epochs iteration iterations iter iters lr runtime timestamp walltime "
    "throughput flops tflops flop mfu warmup dropout uid uuid seconds secs elapsed eta stderr bsz momentum beta1 "
    "beta2 fewshot wd ckpt pid gpus cpus devices nodes bootstrap params parameters time hours minutes duration "
    "date price std sem variance var flos kwh usd eur coef coeff coefficient weight eps epsilon decay smoothing "
    "clip clipping temperature util utilization utilisation alpha beta gamma lambda tau theta sigma sec scale "
    "gb mb gib mib"
)
# Words and pairs of words that say the same wherever they stand in a name without a word of a metric.
ANYWHERE = _set("seed rng lr flops tflops flos warmup dropout runtime timestamp mfu tokens throughput")
PAIRS = frozenset(
    {
        ("learning", "rate"), ("dropout", "rate"), ("sampling", "rate"), ("grad", "norm"), ("gradient", "norm"),
        ("weight", "decay"), ("batch", "size"), ("model", "size"), ("vocab", "size"), ("world", "size"),
        ("wall", "time"), ("wall", "clock"), ("std", "err"), ("standard", "error"), ("per", "second"),
        ("per", "sec"), ("seq", "len"), ("sequence", "length"), ("context", "length"), ("gpu", "hours"),
        ("loss", "scale"), ("tokens", "seen"), ("train", "time"), ("training", "time"), ("max", "steps"),
        ("relative", "time"), ("beta", "1"), ("beta", "2"), ("power", "w"), ("tok", "s"), ("it", "s"),
        ("ci", "low"), ("ci", "high"), ("ci", "lower"), ("ci", "upper"), ("mixture", "entropy"), ("of", "mixture"),
    }
)  # fmt: skip
# Last words of columns that are bookkeeping where they hold whole numbers.
COUNTS = _set(
    "token tokens size sizes batch bs memory mem gpu cpu device node rank id ids "
    "idx index n row rows trial number no nr num count counts version port job attempt layers heads depth width dim "
    "hidden vocab length len context examples samples documents docs shot shots cost checkpoint workers "
    "threads created started finished updated round rounds repeat replicate group fold"
)
AREAS = _set("config cfg hparams hyperparameters hyperparams args params system sys wandb tags meta")
_CAPITALS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MARKS = re.compile(r"[^0-9A-Za-z]+")


def words(name: str) -> list[str]:
    """The words of a name, in small letters."""
    return [word.lower() for word in _MARKS.split(_CAPITALS.sub(" ", name)) if word]


def is_metric(name: str) -> bool:
    """Whether a word of the name is one of a metric."""
    return bool(set(words(name)) & (HIGHER | LOWER))


def is_higher_better(name: str) -> bool:
    """Whether the name says so: an accuracy, a score, a reward, and no word of a loss."""
    found = set(words(name))
    return bool(found & HIGHER) and not found & LOWER


def bookkeeping(name: str) -> str | None:
    """Why a column of this name books what a run was, whatever it holds; None: its name does not say so."""
    found = words(name)
    if name.startswith("_"):
        return "names that begin with _ are a tracker's own"
    if not found:
        return "it has no name"
    if found[0] in AREAS and len(found) > 1:
        return f"`{found[0]}` holds a run's settings"
    if re.search(r"[./]", name) and (area := next((w for w in found[:-1] if w in AREAS), None)):
        return f"`{area}` holds a run's settings"
    if re.search(r".__(MIN|MAX)$", name):
        return "it is a tracker's range of another column"
    if re.fullmatch(r"unnamed: ?\d+|level_\d+|column ?\d+|\.\.\.\d+", name.lower()):
        return "it is an index that was saved with the table"
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
