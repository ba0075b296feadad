"""What the assistant says is what the template writes between the generation prompt and the end of the turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from opmix_ray.config import RunConfig, SourceConfig
from opmix_ray.data import chat
from opmix_ray.data.chat import ChatError, encode_chat
from opmix_ray.data.prepare import prepare
from opmix_ray.data.tokenizer import Encoder
from opmix_ray.errors import UserError
from opmix_ray.init.inspect import choose_columns
from opmix_ray.sources.messages import messages
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
    return runs(tokenizer, *encode_chat(Encoder(tokenizer), messages, **more)[:2])


def runs(tokenizer: Any, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """The texts of what counts, one after the other."""
    starts = np.flatnonzero(np.diff(mask.astype(int))) + 1
    parts = zip(np.split(ids, starts), mask[[0, *starts]], strict=True)
    return [tokenizer.decode(part) for part, counts in parts if counts]


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
        "{% for m in messages %}{% if m.role == 'OTHER' %}[/INST]{{ m.content }}[INST]{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    assert counted(own.replace("OTHER", other), messages) == [f"b[INST]{EOS}"], "its own name is left to it"


def test_nobody_who_is_known_to_answer_is_an_error() -> None:
    with pytest.raises(ChatError, match=r"none of the roles user, narrator is known as the assistant's"):
        encode_chat(
            Encoder(small_tokenizer(CHATML, TURNS)), [user("a"), {"role": "narrator", "content": "b"}]
        )


STRICT_ROLES = (  # any other role is not written
    "{% for m in messages %}{% if m.role in ('system', 'user') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n[{{ m.content }}]<|im_end|>\n{% endif %}{% endfor %}" + ASK
)


@pytest.mark.parametrize(
    "role", ["tool", "ipython", "function", "observation", "function_response", "tool_result"]
)
def test_tools_and_developers_under_every_name_are_written(role: str) -> None:
    talk = [{"role": "developer", "content": "Be brief."}, user("a"), assistant("", "Riga")]
    talk += [{"role": role, "content": "7"}, assistant("b")]
    tokenizer = small_tokenizer(STRICT_ROLES, TURNS)
    ids, mask, _ = encode_chat(Encoder(tokenizer), talk)
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na")
    assert "<|im_start|>user\n[7]<|im_end|>" in tokenizer.decode(ids)
    assert runs(tokenizer, ids, mask) == [f"{call('Riga')}<|im_end|>", "b<|im_end|>", EOS]


def test_what_a_user_or_a_tool_says_is_not_left_out() -> None:
    talk = [user("a"), assistant("", "Riga"), tool("7"), assistant("b")]
    without = STRICT_ROLES.replace("[{{ m.content }}]", "")
    with pytest.raises(ChatError, match="the chat template leaves out what the tool says"):
        counted(without, talk)
    with pytest.raises(ChatError, match="the chat template leaves out what the narrator says"):
        counted(STRICT_ROLES, [{"role": "narrator", "content": "so"}, user("a"), assistant("b")])


WITHOUT_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_what_is_left_out_of_a_conversation_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    chat._told.clear()
    talk = [
        {"role": "system", "content": "Be brief."},
        user("a"),
        {**assistant("b"), "reasoning": "so it is"},
    ]
    for _ in range(2):
        assert counted(WITHOUT_SYSTEM, talk) == ["b<|im_end|>", EOS]
    assert [each.getMessage().partition(",")[0] for each in caplog.records] == [
        "the chat template leaves out what the system says",
        "the chat template leaves out `reasoning` of an answer",
    ]
    caplog.clear()
    chat._told.clear()
    with_both = WITHOUT_SYSTEM.replace(" if m.role != 'system'", "").replace(
        "{{ m.content", "{{ m.reasoning }}{{ m.content"
    )
    counted(with_both, [*talk[:2], {**assistant("c"), "reasoning": "first"}, user("d"), talk[2]])
    assert not caplog.records


@pytest.mark.parametrize("name", ["weight", "train"])
def test_an_answer_that_is_not_to_be_trained_on_does_not_count(name: str) -> None:
    talk = [user("a"), {**assistant("b"), name: 0}, user("c"), {**assistant("d"), name: True}]
    assert counted(CHATML, talk) == ["d<|im_end|>", EOS]
    last = [user("a"), assistant("b"), user("c"), {**assistant("d"), name: False}]
    assert counted(CHATML, last) == ["b<|im_end|>"]
    with pytest.raises(ChatError, match=r"the weight of an answer is 0 or 1, not 0\.5"):
        counted(CHATML, [user("a"), {**assistant("b"), name: 0.5}])


CALL_FORMS: dict[str, dict[str, Any]] = {
    "an object": {"tool_calls": [{"type": "function", "function": {"name": "at", "arguments": {"city": "Bonn"}}}]},
    "JSON in a text": {"tool_calls": [{"id": "1", "function": {"name": "at", "arguments": '{"city": "Bonn"}'}}]},
    "without a function": {"tool_calls": [{"name": "at", "arguments": {"city": "Bonn"}}]},
    "a list in a text": {"tool_calls": '[{"function": {"name": "at", "arguments": {"city": "Bonn"}}}]'},
    "as before tools": {"function_call": {"name": "at", "arguments": '{"city": "Bonn"}'}},
    "as LLaMA-Factory": {"role": "function_call", "content": '{"name": "at", "arguments": {"city": "Bonn"}}'},
}  # fmt: skip
WRITERS = {  # how templates write arguments
    "as JSON": "{{ c.function.arguments | tojson }}",
    "as they are": "{{ c.function.arguments }}",
    "joined to a text": "{{ '' + c.function.arguments }}",
    "either": "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
    "by item": '{% for k, v in c.function.arguments.items() %}{"{{ k }}": "{{ v }}"}{% endfor %}',
}


@pytest.mark.parametrize("form", CALL_FORMS)
@pytest.mark.parametrize("writer", WRITERS)
def test_calls_are_written_alike_however_a_file_has_them(form: str, writer: str) -> None:
    written = "<call>{{ c.function.name }} " + WRITERS[writer] + "</call>"
    template = CALLS.replace("<call>{{ c.function | tojson }}</call>", written)
    talk = messages([user("a"), {**assistant(None), **CALL_FORMS[form]}, tool("7")], "f", "k", "line 1")
    assert talk is not None
    assert counted(template, talk) == ['<call>at {"city": "Bonn"}</call><|im_end|>']


def test_a_call_of_nothing_has_an_empty_object() -> None:
    given = {"function": {"name": "now", "arguments": ""}}
    talk = messages([user("a"), {**assistant(None), "tool_calls": [given]}], "f", "k", "line 1")
    assert talk is not None
    assert counted(CALLS, talk)[0] == '<call>{"name": "now", "arguments": {}}</call><|im_end|>'


def test_a_call_in_words_stays_in_words_where_a_template_knows_no_calls() -> None:
    words = '{"name": "at", "arguments": {"city": "Bonn"}}'
    rows = [user("a"), {"from": "function_call", "value": words}, {"from": "observation", "value": "7"}]
    talk = messages(rows, "f", "k", "line 1")
    assert talk is not None
    assert counted(CHATML, talk) == [f"{words}<|im_end|>"]


def test_a_template_that_writes_one_of_two_calls_is_refused() -> None:
    template = CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    assert counted(template, [user("a"), assistant("", "Riga")])[0] == f"{call('Riga')}<|im_end|>"
    with pytest.raises(ChatError, match="the chat template leaves out the tool calls"):
        counted(template, [user("a"), assistant("", "Riga", "Oslo")])


def test_calls_that_are_none_are_named() -> None:
    with pytest.raises(UserError, match="line 1 has tool calls that are no list of objects; write them as"):
        messages([{"role": "assistant", "tool_calls": 5}], "f", "k", "line 1")


def test_one_of_several_templates() -> None:
    tokenizer = small_tokenizer(CHATML, TURNS)
    tokenizer.chat_template = {"default": STRICT_ROLES, "tool_use": CALLS}
    encoder, rows = Encoder(tokenizer), [user("a"), {"role": "gpt", "content": "b"}]
    assert runs(tokenizer, *encode_chat(encoder, rows)[:2]) == ["b<|im_end|>", EOS]
    assert runs(tokenizer, *encode_chat(encoder, rows, [{"name": "weather"}])[:2]) == ["b<|im_end|>", EOS]
    tokenizer.chat_template = {"tool_use": CALLS}
    with pytest.raises(ChatError, match="no chat template that is taken here"):
        encode_chat(Encoder(tokenizer), rows)


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
    assert runs(tokenizer, ids, mask) == expected
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


# ---- families: what lies between the marks of `generation` is what counts, by transformers' own account ----

CALL = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
LAST = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
ALTERNATE = (
    "{% for m in messages %}"
    "{% if m.role not in ('user', 'assistant') or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
G, E = "{% generation %}", "{% endgeneration %}"
FAMILIES = {  # a template, the token that ends a text, and special tokens
    "hybrid": (
        LAST + "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + G
        + "{% set parts = (m.content or '').split('</think>') %}{% if loop.index0 > ns.last %}<think>\n"
        "{{ parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
        "{{ parts[-1].lstrip() }}" + CALL + "<|im_end|>" + E
        + "\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + ASK, "<|im_end|>", ("<|im_start|>",),
    ),
    "harmony": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant" + G
        + "{% for c in m.tool_calls or [] %}{% if loop.first and m.content and messages[-1] == m %}<|channel|>analysis"
        "<|message|>{{ m.content }}<|end|><|start|>assistant{% endif %} to={{ c.function.name }}<|message|>"
        "{{ c.function | tojson }}<|call|>{% else %}<|channel|>final<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}{% endfor %}" + E
        + "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|return|>", ("<|start|>", "<|end|>", "<|call|>", "<|channel|>", "<|message|>"),
    ),
    "tools before the last question": (
        "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{% if tools and m == asked[-1] %}[TOOLS]{{ tools | tojson }}{% endif %}[INST] {{ m.content }}[/INST]"
        "{% elif m.role == 'tool' %}{% if not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('no call') }}{% endif %}[RESULT]{{ m.content }}[/RESULT]{% elif m.tool_calls %}" + G
        + "[CALLS]{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}</s>" + E
        + "{% elif m.role == 'assistant' %}" + G + " {{ m.content | trim }}</s>" + E
        + "{% else %}{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}",
        "</s>", ("[INST]", "[/INST]", "[TOOLS]", "[RESULT]", "[/RESULT]", "[CALLS]"),
    ),
    "end of all": (
        "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}"
        + G + "{{ m.content }}" + CALL + "<|end|>\n{{ eos_token if loop.last else '' }}" + E
        + "{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n"
        "{% elif messages[-1].role != 'assistant' %}{{ eos_token }}{% endif %}",
        "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|tool|>", "<|system|>", "<|end|>"),
    ),
    "opens a thought": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|Bot|>" + G
        + "{{ (m.content or '').split('</think>')[-1] }}" + CALL + "<|eos|>" + E
        + "{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Bot|><think>\n{% endif %}", "<|eos|>", ("<|Bot|>", "<|User|>"),
    ),
    "no system": (
        ALTERNATE + "{% for m in messages %}<|turn|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        f"{{% if m.role == 'assistant' %}}{G}{{{{ m.content | trim }}}}{CALL}<|over|>{E}"
        "{% else %}{{ m.content | trim }}<|over|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>model\n{% endif %}", "<|endoftext|>", ("<|turn|>", "<|over|>"),
    ),
}  # fmt: skip
TALKS = {
    "turns": [user("hi"), assistant("hi"), user("more"), assistant("less"), user("assistant"), assistant("user")],
    "system": [{"role": "system", "content": "Be brief."}, user("a"), assistant("b"), user("c"), assistant("d")],
    "blanks": [user(" a\n"), assistant("  b  "), user("\nc"), assistant("\n\n d\n")],
    "empty": [user("a"), assistant(""), user("b"), assistant("c")],
    "user last": [user("a"), assistant("b"), user("c")],
    "assistant first": [assistant("a"), user("b"), assistant("c")],
    "two in a row": [user("a"), assistant("b"), assistant("c"), user("d"), assistant("e")],
    "calls": [user("a"), assistant(None, "Riga", "Oslo"), tool("7"), assistant("seven"), user("b"),
              assistant("I look.", "Oslo"), tool("8"), assistant("eight")],
    "thoughts": [user("a"), assistant("<think>\nx\n</think>\n\nfour"), user("b"),
                 assistant("<think>\ny\n</think>\n\nsix")],
    "special tokens": [user("END"), assistant("it END s"), user("END\nassistant: b"), assistant("END")],
}  # fmt: skip


REFUSED = {("tools before the last question", "system")} | {
    ("no system", talk) for talk in ("system", "assistant first", "two in a row", "calls")
}


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans, with those that lie side by side as one."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        before = joined.pop() if joined and joined[-1][1] == start else (start, end)
        joined.append((before[0], end))
    return joined


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_counts_is_what_the_template_generates(family: str, talk: str) -> None:
    marked, eos, special = FAMILIES[family]
    tokenizer = small_tokenizer(marked.replace(G, "").replace(E, ""), special, eos)
    tools = [{"type": "function", "function": {"name": "weather"}}] if talk == "calls" else None
    render = partial(
        render_jinja_template, [TALKS[talk]], tools, None, marked, **tokenizer.special_tokens_map
    )
    if (family, talk) in REFUSED:
        with pytest.raises(TemplateError, match="must alternate"):
            render()
        with pytest.raises(ChatError, match="must alternate"):
            encode_chat(Encoder(tokenizer), TALKS[talk], tools)
        return
    ((text,), (spans,)) = render(return_assistant_tokens_mask=True)
    own = [text[start:end].replace("END", eos).rstrip() for start, end in _joined(spans) if end > start]
    messages: Any = json.loads(json.dumps(TALKS[talk]).replace("END", eos))
    ids, mask, size = encode_chat(Encoder(tokenizer), messages, tools)
    assert runs(tokenizer, ids, mask) in (own, [*own, eos], [*own[:-1], own[-1] + eos])
    assert size == sum(len(each.encode()) for each in own)
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert tokenizer.decode(ids).removesuffix(eos).rstrip() == whole.rstrip().removesuffix(eos).rstrip()


def test_a_template_that_leaves_out_calls_is_refused() -> None:
    talk = [user("in Riga?"), assistant("", "Riga")]
    with pytest.raises(ChatError, match="the chat template leaves out the tool calls"):
        encode_chat(Encoder(small_tokenizer(CHATML, TURNS)), talk)
    said = [user("in Riga?"), assistant("<call>weather</call>", "Riga")]
    assert counted(CHATML, said) == ["<call>weather</call><|im_end|>", EOS]


def test_an_empty_list_of_calls_is_none(tmp_path: Path) -> None:
    row = {"talk": [{**user("a"), "tool_calls": []}, {**assistant("b"), "tool_calls": [], "name": None}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (document,) = read(tmp_path / "a.jsonl")
    assert document.messages == [user("a"), assistant("b")]


# ---- files ----

PARTS = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
FORMS: dict[str, Any] = {
    "role and content": [user("two parts"), assistant("yes")],
    "text parts": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": ["yes"]}],
    "from and value": [{"from": "user", "value": "two parts"}, {"from": "assistant", "value": "yes"}],
    "json in text": json.dumps([user("two parts"), assistant("yes")]),
    "a list for each key": {"role": ["user", "assistant"], "content": ["two parts", "yes"]},
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


def test_words_that_a_template_writes_after_what_a_tool_says_are_refused() -> None:
    late = (  # as Gemma 4's does: calls, what the tools answer, then the words that came with the calls
        "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>"
        "{% if m.content %}{{ messages[2].content }}:{% endif %}{% endfor %}"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + ASK
    )
    talk = [user("in Riga?"), assistant("I look.", "Riga"), tool("seven"), assistant("7 degrees.")]
    with pytest.raises(ChatError, match="writes what the tool says inside an answer"):
        counted(late, talk)
    same = [user("four"), assistant("four")]
    assert counted(CALLS, same) == ["four<|im_end|>", EOS]


def test_no_turn_ends_with_what_begins_the_next_one() -> None:
    always = (  # as Command A's does: the next turn is opened behind every one, and tools are numbered
        "{% set ns = namespace(calls=0) %}<|im_start|>"
        "{% for m in messages %}{% if m.role == 'tool' %}tool {{ ns.calls }}:{{ m.content }}{% else %}"
        "{{ '[INST]' if m.role == 'user' else '[/INST]' }}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{% set ns.calls = ns.calls + 1 %}<call>{{ c.function | tojson }}</call>"
        "{% endfor %}{% endif %}<|im_end|><|im_start|>{% endfor %}[/INST]"
    )
    talk = [user("in Riga?"), assistant(None, "Riga"), tool("seven"), assistant("7 degrees."), user("so?")]
    assert [part.strip() for part in counted(always, [*talk, assistant("warm")])] == [
        f"{call('Riga')}<|im_end|>", "7 degrees.<|im_end|>", "warm<|im_end|>", EOS,
    ]  # fmt: skip
