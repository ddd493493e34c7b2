"""Have a model write the texts that its second moments are taken over by default.

    PYTHONPATH=tools python -m zoo.write_texts smollm2-135m-instruct

Second moments say which keys occur when the model reads. Texts that it writes itself are a sample of those that may be shipped:
they are from its own distribution, at temperature 1 from the 100 likeliest tokens, after common beginnings of sentences, with a
fixed seed. They hold no facts to rely on. A text of your own is better where you know what the model will read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bluedit.models import EditableModel, load_model
from bluedit.models.embedded import TEXTS
from bluedit.models.openings import write_openings
from bluedit.storage.files import atomic_file

__all__ = ["write_texts"]

_OPENINGS = (
    "The history of", "The city of", "In 1987 the", "A new study", "Scientists have found that", "She was born in", "He was a",
    "The river", "The novel", "The film was directed by", "One of the most", "It is known for", "The company was founded",
    "The language", "According to the", "During the war", "The album", "The capital of", "The president of", "The church",
    "In mathematics", "The species", "The team played", "He grew up in", "She studied at", "The museum", "The island of",
    "The party won", "The first", "Many people", "The song", "The king of", "Music", "The university", "In the north of",
    "The game", "The railway", "The treaty", "The author of", "The bridge", "Water", "The mountain", "The product was made by",
    "The football club", "The painter", "The bank", "The castle", "The road from", "Her mother", "His career", "The battle of",
    "The government", "The village", "The festival", "The newspaper", "The court", "The disease", "The planet", "The software",
    "The car", "The actor", "An engineer", "The recipe", "The police",
)  # fmt: skip


def write_texts(model: EditableModel, count: int, tokens: int, seed: int) -> list[str]:
    """Texts of up to `tokens` tokens after their openings, which take turns."""
    openings = [_OPENINGS[number % len(_OPENINGS)] for number in range(count)]
    return write_openings(model, openings, max_new_tokens=tokens, top_k=100, seed=seed, batch_size=count)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=TEXTS)
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    texts = write_texts(load_model(options.model, device="cpu"), options.count, options.tokens, options.seed)
    with atomic_file(options.out or TEXTS[options.model]) as temporary:
        temporary.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    main()
