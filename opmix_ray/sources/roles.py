"""Who speaks in chat messages: the names in use for a role, and the one that chat templates know.

>>> role_of("GPT"), role_of("human"), role_of("narrator")
('assistant', 'user', 'narrator')
"""

from __future__ import annotations

_NAMES = {
    "user": "user human prompter customer",
    "assistant": "assistant gpt chatgpt bot chatbot model ai bing bard llm agent function_call",
    "tool": "tool observation function_response function_result tool_response tool_result",
    "system": "system",
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}


def role_of(name: str) -> str:
    """The role that a name stands for; the name itself where it is nobody's."""
    return _ROLES.get(name.strip().lower(), name)


def name_in(template: str, name: str) -> str:
    """The name that a chat template has for a role: the one given where it speaks of that one alone."""
    role = role_of(name)
    spoken_of = {each for each in (role, name) if f"'{each}'" in template or f'"{each}"' in template}
    return name if spoken_of == {name} else role
