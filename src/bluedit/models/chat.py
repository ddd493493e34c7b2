"""What a chat template makes of a prompt: the text before a user's message, and the text after it where the answer begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bluedit.errors import ModelError

__all__ = ["Chat"]

_MESSAGE, _ANSWER = "bluedit-message", "bluedit-answer"
# Templates that name today's date would make other prompts of the same facts tomorrow; Llama 3's lets it be given.
_DATE = "26 Jul 2024"


@dataclass(frozen=True)
class Chat:
    """The shell that a chat template puts around one user's message; no system prompt but the template's own.

    - `before`: from the start token, where the template writes one, to the message.
    - `after`: from the message to where the answer is due, without spaces at its end.
    - `joint`: what stands between that and the first word of an answer.
    """

    before: str
    after: str
    joint: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Chat:
        """The shell of a tokenizer's chat template.

        The joint is read off the template: what it writes in front of an assistant's message, beyond what it writes when
        asked to prompt for one. A template that writes something else there (a place for thoughts, say) tells nothing; then
        there is no space after a line break or a special token, and one after any other text.

        **Raises** :class:`~bluedit.errors.ModelError` where there is no chat template, or none that a message goes into once.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                "this model's tokenizer has no chat template; leave out --chat (chat=True), or set tokenizer.chat_template to "
                "the one the model was trained with and save it beside the model"
            )
        user = {"role": "user", "content": _MESSAGE}
        try:
            prompt = _rendered(tokenizer, [user], prompting=True)
        except (TemplateError, ValueError) as error:
            raise ModelError(f"this model's chat template takes no lone message of a user: {error}") from error
        if prompt.count(_MESSAGE) != 1:
            raise ModelError("this model's chat template does not hold a user's message exactly once; leave out --chat")
        before, _, whole = prompt.partition(_MESSAGE)
        after = whole.rstrip(" ")
        return cls(before, after, whole[len(after) :] + _joint(tokenizer, user, prompt))

    def around(self, message: str) -> str:
        """The message in its shell."""
        return f"{self.before}{message}{self.after}"


def _joint(tokenizer: PreTrainedTokenizerBase, user: dict[str, str], prompt: str) -> str:
    """What a template writes between its prompt for an answer and the answer."""
    try:
        dialogue = _rendered(tokenizer, [user, {"role": "assistant", "content": _ANSWER}])
    except (TemplateError, ValueError):
        dialogue = ""
    lead, answer, _ = dialogue.partition(_ANSWER)
    if answer and lead.startswith(prompt) and not lead[len(prompt) :].strip():
        return lead[len(prompt) :]
    return "" if prompt[-1].isspace() or prompt.endswith(tuple(tokenizer.all_special_tokens)) else " "


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, prompting: bool = False) -> str:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompting, "date_string": _DATE}
    return str(tokenizer.apply_chat_template(messages, **options))
