"""One row of a dataset in the project's own words, before any template or tokenizer."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """What was asked, about what, and the response to learn.

    Attributes:
        instruction: what to do; None in running text and in conversations of several messages.
        context: the input, document or dialogue; None where the row has none, "" where it should
            have one (a summary of no document).
        response: the gold response; may be empty here, tokenisation drops and counts those.
        messages: the conversation before the response, for rows of the messages layout only.
        references: every acceptable response, at least one; (response,) by default.
    """

    instruction: str | None
    context: str | None
    response: str
    messages: tuple[dict[str, Any], ...] | None = None
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.response,))

    @property
    def lacks_prompt(self) -> bool:
        """Whether there is nothing to answer: the prompt is empty or white space.

        A summary lacks one where its document is, a conversation where the user's last message
        is. Running text has no prompt on purpose and lacks none.
        """
        if self.messages is not None:
            last = self.messages[-1]
            return last["role"] == "user" and not last["content"].strip()
        if self.context == "":
            return True
        if self.instruction is None:
            return False
        return not (self.instruction + (self.context or "")).strip()
