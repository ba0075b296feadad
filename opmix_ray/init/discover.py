"""Which domains a folder or a list of files holds: one per file, per sub-folder, per set of numbered shards.

    for part in discover(["data"]):
        part.name, part.paths, part.files

Files and folders that are called like a held-out split (`test`, `web_validation`, ...) beside one called like its
training part (`train`, `web_train`) are left out, whatever else lies there.
"""

from __future__ import annotations

import os.path
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from opmix_ray.errors import UserError
from opmix_ray.paths import ENDINGS, PLAIN, ending_of, file_format, is_about, is_plain, is_uri, of_data
from opmix_ray.remote import is_local, local_path
from opmix_ray.sources.files import InputFile, filesystem
from opmix_ray.sources.listing import expand, identity, listing, without_twins

KEY = "--data"
SMALL = 100_000  # bytes of text below which a file is no domain of its own
MOST_FILES = 32  # domains that the files of one folder make; more of them are one domain
TRAIN = {"train", "training"}
HELD_OUT = {
    "test",
    "testing",
    "valid",
    "validation",
    "val",
    "dev",
    "eval",
    "evaluation",
    "heldout",
    "holdout",
}
_PROSE = (".txt", ".text", ".md")  # of texts that are no programs: `user_test.go` is no split of `user.go`
_NAMELESS = {"", "data", "part", "shard", "chunk", "file", "output", "text", "corpus"} | TRAIN
# A number at the end of a file's name, as writers of shards put it there; a year is not one.
_SHARD = re.compile(r"^(.*?)[-_.]?((?:part|shard|chunk|split)?[-_.]?\d+(?:[-_.]?of[-_.]?\d+)?)$")
# What Spark writes after it: `part-00000-6d0a3b9e-....-c000.snappy.parquet`.
_OF_WRITER = re.compile(
    r"(?<=\d)(-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?(-c\d+)?(\.(snappy|gz|zstd|lz4))?$"
)
_YEAR = re.compile(r"^[-_.]?(19|20)\d\d$")
# What lies in the folder of a model or a tokenizer, as `transformers`, `peft` and `tokenizers` write it.
_OF_TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}
_CONFIGS = {"config.json", "adapter_config.json", "params.json"}
_WEIGHTS = re.compile(r".*\.(safetensors|gguf|pt|pth)|(pytorch_model|adapter_model|model)[-\w]*\.bin")
_OF_MODEL = re.compile(
    r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|config|generation_config|adapter_config|params"
    r"|trainer_state|all_results|(train|eval)_results|(pre)?processor|preprocessor|checksums)[_\w]*\.(json|txt|jinja|model)"
    r"|(training_args|optimizer|scheduler)\.bin|.*\.(bin|safetensors)\.index\.json|" + _WEIGHTS.pattern
)

_Place = tuple[str, str]  # a folder, and the name of what lies in it


@dataclass
class Part:
    """One proposed domain: its files, and what to name as their path in a configuration."""

    name: str
    paths: list[str]
    files: list[InputFile]
    left_out: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


def discover(data: Sequence[str]) -> list[Part]:
    """Domains in files, folders, globs and URIs, in the order given; names are unique and safe.

    Raises:
        UserError: nothing is there, or nothing of a kind that can be read.
    """
    parts: list[Part] = []
    loose: dict[str, list[InputFile]] = defaultdict(list)
    seen_files: set[str] = set()
    given: dict[str, list[InputFile]] = {}
    for path in data:
        filesystem(path, key=KEY)  # a URI that names nothing here is refused as it was written
        path = local_path(path) if is_local(path) else path
        files = [file for file in _files(path) if identity(file.path) not in seen_files]
        seen_files |= {identity(file.path) for file in files}
        given.setdefault(path, []).extend(files)
    everything = [file for files in given.values() for file in files]
    named = next(iter(given), "") + (f" and {len(given) - 1} more" if len(given) > 1 else "")
    once = {file.path for file in without_twins(everything, named, KEY)}
    held_out = _held_out(file for file in everything if file.path in once)
    for path, files in given.items():
        files = [file for file in files if file.path in once and file.path not in held_out]
        if not files:
            continue
        if [file.path for file in files] == [path] or "*" in path:
            for file in files:
                loose[_parent(file.path)].append(file)
        else:
            parts += _folder(path.rstrip("/"), files)
    for parent, files in loose.items():
        parts += _side_by_side(parent, files)
    _give_held_out(parts, held_out)
    seen: dict[str, int] = {}
    for part in parts:
        name = safe_name(part.name)
        seen[name] = seen.get(name, 0) + 1
        part.name = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return parts


def safe_name(text: str) -> str:
    """A name that a configuration takes: letters, digits, `_`, `.` and `-`."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-")
    return name or "domain"


def _files(path: str) -> list[InputFile]:
    files = expand(path, key=KEY, recognised_only=False)
    models = _models(files, path)
    known = [
        file
        for file in files
        if file.path == path
        or not ((is_plain(file.path) and is_about(file.path)) or _is_in(file.path, models))
    ]
    known = [file for file in known if file_format(file.path)]
    if not known:
        some = os.path.basename(files[0].path)
        raise UserError(
            f"holds no file that can be read (it has {some})",
            key=KEY,
            value=path,
            remedy=f"give files ending in {', '.join([*ENDINGS, *PLAIN][:14])}, ...",
        )
    return known


def _models(files: Sequence[InputFile], root: str) -> set[str]:
    """Folders with a model, a tokenizer or installed programs, and no data; of a mixed folder, its files of that."""
    inside: dict[str, set[str]] = defaultdict(set)
    data: set[str] = set()  # folders with data somewhere in them
    for file in files:
        folder, _, name = file.path.rpartition("/")
        inside[folder].add(name)
        if file_format(name) and not is_plain(name) and not _OF_MODEL.fullmatch(name):
            data |= {file.path[:at] for at, letter in enumerate(file.path) if letter == "/"}
    found: set[str] = set()
    for folder, names in inside.items():
        if names & _OF_TOKENIZER or (names & _CONFIGS and any(map(_WEIGHTS.fullmatch, names))):
            mixed = folder in data or folder == root.rstrip("/")
            found |= (
                {f"{folder}/{name}" for name in names if _OF_MODEL.fullmatch(name)} if mixed else {folder}
            )
        elif "pyvenv.cfg" in names and folder != root.rstrip("/"):
            found.add(folder)
    return {each for each in found if not _is_in(each.rpartition("/")[0], found)}


def _is_in(path: str, places: set[str]) -> bool:
    """Whether a file is one of these places, or lies in one."""
    return path in places or any(path[:at] in places for at, letter in enumerate(path) if letter == "/")


def ignored(data: Sequence[str], parts: Sequence[Part]) -> list[str]:
    """Files and folders that no domain reads: hidden ones, notes beside data, and those of a kind that is not read."""
    taken = {identity(path) for part in parts for path in [*(f.path for f in part.files), *part.left_out]}
    names: list[str] = []
    for path in data:
        found = listing(path, key=KEY)
        models = _models(found.files, path)
        names += (
            found.ours
            + sorted(models)
            + found.hidden
            + found.broken
            + [
                file.path
                for file in found.files
                if identity(file.path) not in taken and not _is_in(file.path, models)
            ]
        )
    return list(dict.fromkeys(names))


def _folder(root: str, files: list[InputFile]) -> list[Part]:
    """One domain for each sub-folder, and those of the files that lie in the folder itself."""
    here: list[InputFile] = []
    below: dict[str, list[InputFile]] = defaultdict(list)
    for file in files:
        first, slash, _ = file.path[len(root) :].lstrip("/").partition("/")
        if slash:
            below[first].append(file)
        else:
            here.append(file)
    if not here and len(below) == 1:
        name, inside = next(iter(below.items()))
        found = _folder(f"{root}/{name}", inside)
        whole = len(found) == 1 and bool(_words(name) & TRAIN)
        return [_part(_base(root), f"{root}/{name}", inside)] if whole else found
    parts = [_part(name, f"{root}/{name}", inside) for name, inside in below.items()]
    return _side_by_side(root, here) + parts


def _side_by_side(folder: str, files: list[InputFile]) -> list[Part]:
    """Domains among files of one folder: shards together, everything together where there are too many."""
    small: dict[str, list[InputFile]] = defaultdict(list)
    groups: dict[str, list[InputFile]] = defaultdict(list)
    for file in files:
        if file_format(file.path) == "text" and file.size < SMALL:
            small[ending_of(file.path).lstrip(".")].append(file)
        else:
            groups[_without_number(_stem(file.path))].append(file)
    if small:  # no file of them has enough to be a domain
        rest = [file for members in groups.values() for file in members]
        pooled = [_pool(folder, ending, members) for ending, members in small.items()]
        many = [part for part in pooled if part.size >= SMALL]
        found = many + (_side_by_side(folder, rest) if rest else [])
        return found or pooled
    named: dict[str, list[InputFile]] = {}
    for base, members in groups.items():
        alone = len(members) == 1 and "of" not in _number(_stem(members[0].path))
        named[_stem(members[0].path) if alone else base] = members
    if len(named) > MOST_FILES:
        return [_part(_base(folder), folder, files)]
    return [
        _part(_base(folder) if base.lower() in _NAMELESS else base, None, members)
        for base, members in named.items()
    ]


def _pool(folder: str, ending: str, files: list[InputFile]) -> Part:
    """One domain of all small texts of a kind in a folder."""
    everything = f"{folder}/*.{ending}"
    paths = [everything] if _holds(everything, files) else [file.path for file in files]
    return Part(ending.partition(".")[0], paths, files)


def _part(name: str, folder: str | None, files: list[InputFile]) -> Part:
    """A domain of these files, without those of a held-out split, and without notes beside data."""
    if folder is not None:
        kinds = set(of_data([file.path for file in files]))
        files = [file for file in files if file.path in kinds] or files
    depth = len(folder) if folder is not None else 0
    words = {
        file.path: _words(file.path[depth:] if folder is not None else _base(file.path)) for file in files
    }
    out = [file for file in files if words[file.path] & HELD_OUT]
    kept = [file for file in files if file not in out]
    if not kept or not out:
        kept, out = files, []
    left_out = [file.path for file in out]
    if folder is not None and not out and _holds(folder, files):
        return Part(name, [folder], files)
    parents = {_parent(file.path) for file in kept}
    if (
        folder is not None
        and len(parents) == 1
        and not parents & {_parent(path) for path in left_out}
        and _holds(next(iter(parents)), kept)
    ):
        return Part(name, sorted(parents), kept, left_out)
    return Part(name, [file.path for file in kept], kept, left_out)


def _holds(folder: str, files: list[InputFile]) -> bool:
    """Whether a folder stands for exactly these files: a link in it may lead to what is another domain's."""
    return sorted(file.path for file in expand(folder, key=KEY)) == sorted(file.path for file in files)


def _held_out(files: Iterable[InputFile]) -> dict[str, _Place]:
    """Files of held-out splits, each with the place of what is trained on beside it."""
    inside: dict[str, set[str]] = defaultdict(set)
    places = {file.path: _places(file.path) for file in files}
    programs = {found[0] for path, found in places.items() if _is_program(path)}
    for folder, name in {place for found in places.values() for place in found}:
        inside[folder].add(name)
    splits = {
        (folder, name): (folder, trained)
        for folder, names in inside.items()
        for name, trained in _splits(names, folder, inside).items()
        if (folder, trained) not in programs or _split(trained)[0]
    }
    outer = {path: [splits[place] for place in found if place in splits] for path, found in places.items()}
    return {path: found[-1] for path, found in outer.items() if found}


def _places(path: str) -> list[_Place]:
    """Folder and name of a file, its shard's number left out, and of every folder that it lies in."""
    plain = path.partition("?")[0] if is_uri(path) else os.path.abspath(path)
    folder, _, name = plain.rpartition("/")
    found = [(folder, _without_number(_stem(name)))]
    while folder.strip("/") and not folder.endswith(":/"):
        folder, _, name = folder.rpartition("/")
        found.append((folder, name))
    return found


def _splits(names: Iterable[str], folder: str, inside: Mapping[str, set[str]]) -> dict[str, str]:
    """Those of a folder's names that are held-out splits, each with the training part that lies beside it.

    Args:
        names: of files, without the numbers of shards, and of folders.
        folder: where they lie.
        inside: names in every folder.
    """
    said = {name: _split(name) for name in names}
    training = {words: name for name, (role, words) in said.items() if role == "train"}
    plain = {words: name for name, (role, words) in said.items() if not role and words}
    only = next(iter(training.values()), None) if all(role for role, _ in said.values()) else None
    found: dict[str, str] = {}
    for name, (role, words) in said.items():
        if role == "held out":
            near = (training[other] for other in training if other <= words or words <= other)
            trained = training.get(words) or next(near, None) or only or plain.get(words)
            within = inside.get(f"{folder}/{name}")
            if not trained and within and within <= said.keys():  # test/web.jsonl beside web.jsonl
                trained = min(within)
            found |= {name: trained} if trained else {}
    return found


def _split(name: str) -> tuple[str, frozenset[str]]:
    """What a name says of a split (`train`, `held out` or nothing), and its other words."""
    words = {
        word.lower()
        for word in _pieces(re.sub(r"(?i)(?<![a-z])(held|hold)[-_ ]out", r"\1out", name))[::2]
        if word
    }
    role = "train" if words & TRAIN else "held out" if words & HELD_OUT else ""
    return role, frozenset(words) - TRAIN - HELD_OUT


def _pieces(name: str) -> list[str]:
    """Words of a name, and what stands between them, in turn; `webTrain` has two."""
    return re.split(r"([\W\d_]+)", re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "\0", name))


def _is_program(path: str) -> bool:
    return file_format(path) == "text" and not ending_of(path).startswith(_PROSE)


def _give_held_out(parts: Iterable[Part], held_out: Mapping[str, _Place]) -> None:
    """Tell each part which held-out files are of its own, and take `train` out of its name."""
    left = dict(held_out)
    for part in parts:
        places = {place for file in part.files for place in _places(file.path)}
        own = [path for path, trained in left.items() if trained in places]
        part.left_out += own
        left = {path: trained for path, trained in left.items() if trained not in places}
        if part.name in {held_out[path][1] for path in own} and _split(part.name)[1]:
            first, *more = _pieces(part.name)
            words = [("", first), *zip(more[::2], more[1::2], strict=True)]
            kept = "".join(between + word for between, word in words if word.lower() not in TRAIN)
            part.name = kept.replace("\0", "").strip("-_. ")


def _words(path: str) -> set[str]:
    """Words in the names of a path."""
    return set(re.split(r"[^a-z]+", path.lower()))


def _stem(path: str) -> str:
    name = _base(path.partition("?")[0] if is_uri(path) else path)
    return _OF_WRITER.sub("", name[: len(name) - len(ending_of(name))])


def _number(stem: str) -> str:
    """The shard's number at the end of a name; empty where there is none."""
    found = _SHARD.match(stem)
    separated = found is not None and (
        not found[1] or stem[len(found[1])] in "-_." or found[2].startswith("0")
    )
    return found[2] if found and separated and not _YEAR.match(found[2]) else ""


def _without_number(stem: str) -> str:
    number = _number(stem)
    return stem[: len(stem) - len(number)].rstrip("-_.") if number else stem


def _base(path: str) -> str:
    plain = path.partition("?")[0] if is_uri(path) else os.path.abspath(os.path.expanduser(path))
    return plain.rstrip("/").rpartition("/")[2]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
