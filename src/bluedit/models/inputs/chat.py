"""What a chat template makes of a prompt: the text before a user's message, and the text after it where the answer begins."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bluedit.errors import ModelError, first_line

__all__ = ["Chat"]

_MESSAGE, _ANSWER = "bluedit-message", "bluedit-answer"
# Templates that name today's date would make other prompts of the same facts tomorrow; Llama 3's lets it be given.
_DATE = "26 Jul 2024"
_PROBE = Path(__file__).with_name("chat_probe.py")
_SECONDS, _WAITED = 5, 60
"""What a template may compute (it takes milliseconds), and how long is waited for it on a machine that is busy."""
_MEMORY, _CHARACTERS = 2 * 2**30, 1_000_000
"""What it may take and write: published ones write some hundreds of characters, and thousands with tools."""


@dataclass(frozen=True)
class Chat:
    """The shell that a chat template puts around one user's message; no system prompt but the template's own.

    - `before`: from the start token, where the template writes one, to the message.
    - `after`: from the message to where the answer is due, without spaces at its end.
    - `separator`: what stands between that and the first word of an answer.
    """

    before: str
    after: str
    separator: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Chat:
        """The shell of a tokenizer's chat template.

        The separator is read off the template: what it writes in front of an assistant's message, beyond what it writes when
        asked to prompt for one. A template that writes something else there (a place for thoughts, say) tells nothing; then
        there is no space after a line break or a special token, and one after any other text.

        **Raises** :class:`~bluedit.errors.ModelError` where there is no chat template, none that a message goes into once, or
        one that does not end: it is tried in a process of its own first, with limits on time, memory and size.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                "this model's tokenizer has no chat template; leave out --chat (chat=True), or set tokenizer.chat_template to "
                "the one the model was trained with and save it next to the model"
            )
        user = {"role": "user", "content": _MESSAGE}
        _check_ends(tokenizer, [([user], True), ([user, {"role": "assistant", "content": _ANSWER}], False)])
        try:
            prompt = _rendered(tokenizer, [user], prompting=True)
        except Exception as error:  # the template's own code runs here
            raise ModelError(
                f"this model's chat template does not accept a single user message: {first_line(error)}"
            ) from error
        if prompt.count(_MESSAGE) != 1:
            raise ModelError("this model's chat template does not hold a user's message exactly once; leave out --chat")
        before, _, whole = prompt.partition(_MESSAGE)
        after = whole.rstrip(" ")
        return cls(before, after, whole[len(after) :] + _separator(tokenizer, user, prompt))

    @property
    def identity(self) -> dict[str, str]:
        """What hashes of a chat are taken over, by the names of earlier versions: what was stored by such a hash is found."""
        return {"before": self.before, "after": self.after, "joint": self.separator}

    def around(self, message: str) -> str:
        """The message in its shell."""
        return f"{self.before}{message}{self.after}"


def _separator(tokenizer: PreTrainedTokenizerBase, user: dict[str, str], prompt: str) -> str:
    """What a template writes between its prompt for an answer and the answer."""
    try:
        dialogue = _rendered(tokenizer, [user, {"role": "assistant", "content": _ANSWER}])
    except Exception:  # a template that takes no answer tells nothing
        dialogue = ""
    lead, answer, _ = dialogue.partition(_ANSWER)
    if answer and lead.startswith(prompt) and not lead[len(prompt) :].strip():
        return lead[len(prompt) :]
    return "" if prompt[-1].isspace() or prompt.endswith(tuple(tokenizer.all_special_tokens)) else " "


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, prompting: bool = False) -> str:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompting, "date_string": _DATE}
    return str(tokenizer.apply_chat_template(messages, **options))


def _check_ends(tokenizer: PreTrainedTokenizerBase, dialogues: list[tuple[list[dict[str, str]], bool]]) -> None:
    """Render dialogues, each with whether an answer is asked for, in a process that can be stopped.

    **Raises** :class:`~bluedit.errors.ModelError` where that takes too much time or memory, or writes too much.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # several templates and no default: said when it is rendered
        return
    renderings = [
        {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": asked, "date_string": _DATE}
        for messages, asked in dialogues
    ]
    task = {
        "path": sys.path, "seconds": _SECONDS, "memory": _MEMORY, "characters": _CHARACTERS, "template": template,
        "tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()}, "renderings": renderings,
    }  # fmt: skip
    command = [sys.executable, "-I", str(_PROBE)]
    slow = f"does not end within {_SECONDS} seconds"
    try:
        done = subprocess.run(  # noqa: S603 (our own file, run by our own interpreter)
            command, input=json.dumps(task), capture_output=True, text=True, timeout=_WAITED, check=False
        )
        problem = json.loads(done.stdout)["problem"] if done.returncode == 0 else _ended(done.returncode, slow)
    except subprocess.TimeoutExpired:
        problem = slow
    except (OSError, ValueError):  # no process can be started here: the template is taken at its word
        return
    if problem:
        raise ModelError(
            f"this model's chat template cannot be used: it {problem}; leave out --chat (chat=True), or set "
            "tokenizer.chat_template to the one the model was trained with"
        )


def _ended(code: int, slow: str) -> str:
    """What the end of a process without an answer means."""
    too_long = {-getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)}
    return slow if code in too_long else "breaks the program that reads it"
