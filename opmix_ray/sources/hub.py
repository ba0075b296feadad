"""Directories written by `datasets.save_to_disk`, read without that library."""

from __future__ import annotations

import json
from typing import Any

from pyarrow import fs as pafs

from opmix_ray.errors import UserError
from opmix_ray.sources.files import InputFile, filesystem, join, reading


def data_set_files(path: str, *, key: str, required: bool) -> list[InputFile] | None:
    """The Arrow files of a saved data set in the order its state.json gives.

    Args:
        path: directory or URI.
        key: configuration key named in errors.
        required: whether anything else is an error (else: None).

    Raises:
        UserError: the directory holds several splits, or its state.json is broken.
    """
    if "*" in path and not required:
        return None
    system, inner = filesystem(path, key=key)
    with reading(path, key):
        infos = system.get_file_info([f"{inner}/state.json", f"{inner}/dataset_dict.json"])
        is_data_set, is_dict = (info.type == pafs.FileType.File for info in infos)
        if is_dict and not is_data_set:
            splits = _json(system, f"{inner}/dataset_dict.json").get("splits") or []
            raise UserError(
                f"holds several splits: {', '.join(map(str, splits)) or 'none'}",
                key=key,
                value=path,
                remedy=f"name one, for example {join(path, str(splits[0]) if splits else 'train')}",
            )
        if not is_data_set:
            if not required:
                return None
            raise UserError(
                "is not a directory written by datasets.save_to_disk: it has no state.json",
                key=key,
                value=path,
                remedy="check the path, or set the format to arrow, parquet or jsonl",
            )
        names = [entry["filename"] for entry in _json(system, f"{inner}/state.json")["_data_files"]]
        if any("/" in name or "\\" in name for name in names):
            raise UserError("its state.json names files outside", key=key, value=path, remedy="save it again")
        files = system.get_file_info([f"{inner}/{name}" for name in names])
    missing = [info.base_name for info in files if info.type != pafs.FileType.File]
    if missing or not names:
        raise UserError(
            f"lacks its data files {', '.join(missing)}",
            key=key,
            value=path,
            remedy="save the data set again",
        )
    return [
        InputFile(join(path, name), info.size or 0, info.mtime_ns or 0)
        for name, info in zip(names, files, strict=True)
    ]


def _json(system: pafs.FileSystem, inner: str) -> dict[str, Any]:
    with system.open_input_stream(inner) as stream:
        loaded = json.loads(stream.read())
    if not isinstance(loaded, dict):
        raise ValueError(f"{inner} is not a JSON object")
    return loaded
