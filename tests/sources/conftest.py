"""Sources are read with the tokenizers and configurations that prepared data are tested with."""

from __future__ import annotations

from tests.data.conftest import chat_tokenizer_dir as chat_tokenizer_dir
from tests.data.conftest import make_config as make_config
from tests.data.conftest import tokenizer as tokenizer
from tests.data.conftest import tokenizer_dir as tokenizer_dir
from tests.data.conftest import write_rows as write_rows
