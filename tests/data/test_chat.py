"""What the assistant says is what the template writes between the generation prompt and the end of the turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opmix_ray.config import RunConfig, SourceConfig
from opmix_ray.data.chat import ChatError, encode_chat
from opmix_ray.data.prepare import prepare
from opmix_ray.data.tokenizer import Encoder
from opmix_ray.errors import UserError
from opmix_ray.init.columns import choose_columns
from opmix_ray.sources.source import Document, iter_documents
from tests.data.conftest import CHATML, small_tokenizer

TURNS = ("<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CALLS = (
    "{% for t in tools or [] %}{{ t['name'] }};{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    + ASK
)
THOUGHTS = (  # those of earlier turns are left out, as hybrid reasoning models do
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% if loop.index0 > ns.last %}<think>{{ parts[0].replace('<think>', '') if parts | length > 1 else '' }}</think>"
    "{% endif %}{{ parts[-1] }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + ASK
)
STRICT = THOUGHTS.replace(
    "{% else %}{{ m.content }}",
    "{% else %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('no call') }}{% endif %}{{ m.content }}",
)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, *cities: str) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": "weather", "city": city}} for city in cities]
    return {"role": "assistant", "content": content or "", **({"tool_calls": calls} if calls else {})}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def call(city: str) -> str:
    return f'<call>{{"name": "weather", "city": "{city}"}}</call>'


def counted(template: str, messages: list[dict[str, Any]], **more: Any) -> list[str]:
    """The runs of text that count in the loss."""
    tokenizer = small_tokenizer(template, TURNS)
    ids, mask, _ = encode_chat(Encoder(tokenizer), messages, **more)
    starts = np.flatnonzero(np.diff(mask.astype(int))) + 1
    runs = zip(np.split(ids, starts), mask[[0, *starts]], strict=True)
    return [tokenizer.decode(run) for run, counts in runs if counts]


EOS = "<|endoftext|>"


def test_a_call_and_the_end_of_its_turn_count() -> None:
    messages = [user("in Riga?"), assistant(None, "Riga"), tool("7"), assistant("7 degrees.")]
    assert counted(CALLS, messages) == [f"{call('Riga')}<|im_end|>", "7 degrees.<|im_end|>", EOS]
    both = [user("in Riga?"), assistant("I look.", "Riga", "Oslo")]
    assert counted(CALLS, both) == [f"I look.{call('Riga')}{call('Oslo')}<|im_end|>", EOS]


def test_tools_are_written_and_do_not_count() -> None:
    found = counted(CALLS, [user("a"), assistant("b")], tools=[{"name": "weather", "type": "function"}])
    assert found == ["b<|im_end|>", EOS]


def test_thoughts_count_where_they_are_rendered() -> None:
    messages = [user("a"), assistant("<think>hm</think>four"), user("b"), assistant("<think>so</think>six")]
    assert counted(THOUGHTS, messages) == ["four<|im_end|>", "<think>so</think>six<|im_end|>", EOS]


@pytest.mark.parametrize("template", [THOUGHTS, STRICT])
def test_thoughts_between_calls(template: str) -> None:
    messages = [
        user("a"), assistant("<think>x</think>look", "Riga"), tool("7"), assistant("<think>y</think>seven"),
        user("b"), assistant("<think>z</think>look again", "Oslo"), tool("8"), assistant("eight"),
    ]  # fmt: skip
    assert counted(template, messages) == [
        f"look{call('Riga')}<|im_end|>", "seven<|im_end|>",
        f"<think>z</think>look again{call('Oslo')}<|im_end|>", "<think></think>eight<|im_end|>", EOS,
    ]  # fmt: skip


@pytest.mark.parametrize("said", ["user", "assistant", "im", "<|im_start|>", "im_end", "e", ""])
def test_answers_that_are_part_of_the_markup(said: str) -> None:
    expected = [f"{said}<|im_end|>", f"{said}<|im_end|>", EOS]
    assert counted(CHATML, [user(said), assistant(said), user(said), assistant(said)]) == expected
    assert counted(CHATML, [assistant(said), user(said), assistant(said)]) == expected


def test_a_prompt_that_opens_a_thought_which_the_answer_lacks() -> None:
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert counted(template, [user("a"), assistant("b"), user("c"), assistant("d")]) == [
        "b<|im_end|>", "d<|im_end|>", EOS,
    ]  # fmt: skip


def test_a_template_without_a_generation_prompt_does_not_count_who_speaks() -> None:
    template = CHATML.partition("{% if add_generation_prompt")[0]
    assert counted(template, [user("a"), assistant("b")]) == ["b<|im_end|>", EOS]


@pytest.mark.parametrize(
    "names", [("human", "gpt"), ("User", "Assistant"), ("prompter", "bot"), ("user", "model")]
)
def test_roles_under_other_names(names: tuple[str, str]) -> None:
    one, other = names
    messages = [{"role": one, "content": "a"}, {"role": other, "content": "b"}]
    assert counted(CHATML, messages) == counted(CHATML, [user("a"), assistant("b")]) == ["b<|im_end|>", EOS]
    own = (
        "{% for m in messages %}{% if m.role == 'OTHER' %}[/INST]{{ m.content }}[INST]{% endif %}{% endfor %}"
    )
    assert counted(own.replace("OTHER", other), messages) == [f"b[INST]{EOS}"], "its own name is left to it"


def test_nobody_who_is_known_to_answer_is_an_error() -> None:
    with pytest.raises(ChatError, match=r"none of the roles user, narrator is known as the assistant's"):
        encode_chat(
            Encoder(small_tokenizer(CHATML, TURNS)), [user("a"), {"role": "narrator", "content": "b"}]
        )


@pytest.mark.parametrize("asked", ["", " if strftime_now is defined else 'none'"])
def test_a_date_in_the_template_is_the_same_every_day(asked: str) -> None:
    tokenizer = small_tokenizer("{{ strftime_now('%d %b %Y %H:%M:%S.%f')" + asked + " }}" + CHATML, TURNS)
    ids, _, _ = encode_chat(Encoder(tokenizer), [user("a"), assistant("b")])
    assert tokenizer.decode(ids).startswith("26 Jul 2024 00:00:00.000000<|im_start|>user")


# ---- templates ----

MESSAGES = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "assistant"},
]
TEMPLATES: dict[str, tuple[str, list[str], int]] = {  # template, what counts, its bytes
    "chatml": (CHATML, ["a<|im_end|>", "assistant<|im_end|>", "<|endoftext|>"], 30),
    "inst": (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}",
        [" a <|endoftext|>", " assistant <|endoftext|>"],
        40,
    ),
    "plain": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        [" a", " assistant", "<|endoftext|>"],  # the blank before is part of the token
        10,
    ),
    "thinking": (  # the last answer is rendered otherwise than those before it
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["a<|im_end|>", "<think></think>assistant<|im_end|>", "<|endoftext|>"],
        45,
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_found_in_every_kind_of_template(name: str) -> None:
    template, expected, size = TEMPLATES[name]
    tokenizer = small_tokenizer(template, TURNS)
    ids, mask, found_size = encode_chat(Encoder(tokenizer), MESSAGES)
    starts = np.flatnonzero(np.diff(mask.astype(int))) + 1
    runs = zip(np.split(ids, starts), mask[[0, *starts]], strict=True)
    assert [tokenizer.decode(run) for run, counts in runs if counts] == expected
    assert (ids[-1], found_size) == (tokenizer.eos_token_id, size)
    assert (ids[:-1] == tokenizer.eos_token_id).sum() == (name == "inst")


def test_a_user_has_the_last_word() -> None:
    tokenizer = small_tokenizer(CHATML, TURNS)
    ids, mask, _ = encode_chat(Encoder(tokenizer), MESSAGES[:3])
    assert tokenizer.decode(ids[mask]) == "a<|im_end|>"
    assert not mask[-1]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages | length }}{% for m in messages %}{{ m['role'] }}{% endfor %}", "differently"),
    ],
)
def test_a_template_that_hides_the_answers_is_refused(template: str, expected: str) -> None:
    with pytest.raises(ChatError, match=expected):
        encode_chat(Encoder(small_tokenizer(template)), MESSAGES)


def test_a_template_may_change_what_is_said() -> None:
    said = "<|im_start|>{{ m.content | upper }}<|im_end|>"
    template = "{{ messages | length }}{% for m in messages %}" + said + "{% endfor %}"
    assert counted(template, MESSAGES) == ["A<|im_end|>", f"ASSISTANT<|im_end|>{EOS}"]


# ---- files ----

PARTS = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
FORMS: dict[str, Any] = {
    "role and content": [user("two parts"), assistant("yes")],
    "text parts": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": ["yes"]}],
    "from and value": [{"from": "user", "value": "two parts"}, {"from": "assistant", "value": "yes"}],
    "json in text": json.dumps([user("two parts"), assistant("yes")]),
    "json messages": [json.dumps(user("two parts")), json.dumps(assistant("yes"))],
}


def read(path: Path) -> list[Document]:
    return list(iter_documents(SourceConfig(path=str(path), messages_column="talk"), "d"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_messages_in_every_form(form: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    rows = [{"talk": FORMS[form]}] * 2
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "text parts":
        yes = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
        pq.write_table(pa.table({"talk": [[{"role": "user", "content": PARTS}, yes]] * 2}), path)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    for document in read(path):
        assert document.messages == [user("two parts"), assistant("yes")]
    assert choose_columns(rows, "f") == {"messages_column": "talk"}


def test_an_image_is_named(tmp_path: Path) -> None:
    row = {"talk": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(
        UserError, match=r"line 1 has a content of type image_url, not text; leave such rows out"
    ):
        read(tmp_path / "a.jsonl")


def json_table(tools: bool = True) -> pa.Table:
    """What datasets 5 writes for chats with tool calls: a list of extension<arrow.json>."""
    talk = [json.dumps(user("in Riga?")), json.dumps(assistant(None, "Riga"))]
    storage = pa.array([talk] * 3, pa.list_(pa.string()))
    kind = pa.list_(pa.json_(pa.string()))
    columns = {
        "talk": pa.ListArray.from_arrays(
            storage.offsets, storage.values.cast(pa.json_(pa.string())), type=kind
        )
    }
    if tools:
        columns["tools"] = pa.array(['[{"type": "function", "name": "weather"}]'] * 3)
    return pa.table(columns)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_the_json_type_of_datasets_5(ending: str, tmp_path: Path) -> None:
    path, table = tmp_path / f"a.{ending}", json_table()
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    documents = read(path)
    assert len(documents) == 3
    assert documents[0].messages == [user("in Riga?"), assistant(None, "Riga")]
    assert documents[0].tools == [{"type": "function", "name": "weather"}]
    pq.write_table(json_table(tools=False), tmp_path / "b.parquet")
    assert [document.tools for document in read(tmp_path / "b.parquet")] == [None] * 3


def test_a_domain_of_calls_alone_is_prepared(
    make_config: Callable[..., RunConfig], tmp_path: Path, write_rows: Callable[..., str]
) -> None:
    small_tokenizer(CALLS, TURNS).save_pretrained(tmp_path / "calls")
    rows = [{"talk": [user(f"number {n}"), assistant(None, f"city {n}")]} for n in range(60)]
    source = {"path": write_rows("a.jsonl", rows), "messages_column": "talk"}
    config = make_config(tokenizer={"path": str(tmp_path / "calls")}, seq_len=128, d=source)
    part = prepare(config).domains["d"].manifest["splits"]
    assert part["train"]["without_answer"] == part["eval"]["without_answer"] == 0
    assert part["train"]["documents"] + part["eval"]["documents"] == 60
