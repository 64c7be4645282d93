"""Read the folder of texts that the starter learns from.

    *.jsonl, *.jsonl.gz   chats, one {"messages": [...]} a line
    anything else         documents separated by <|endoftext|>, plain or .gz

File names carry meaning: they decide how often a text is repeated, which stories are also told
as chats, and what is held out (see the constants below).
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

# How often a text is read in one epoch, by a part of its file name: good but small ones more often.
REPEATS = {"instruct": 4, "african": 2, "chatterbot": 2}
STORIES_AS_CHATS = "tinystories"
HELD_OUT_PREFIXES = ("dialog_self", "dialog_topical", "books", "stories_fairy")
HELD_OUT_EVERY = 97

# A whole book as one document would fill the tokenizer's sample by itself.
LONGEST_DOCUMENT = 20_000
PIECE_OF_A_BOOK = 4_000
# A longer story would not fit one training window as a chat.
LONGEST_STORY_CHAT = 1_800

STORY_SUBJECTS = (
    "cat dog bird bear fish frog duck bunny rabbit mouse lion horse cow tree flower ball car boat "
    "boy girl toy park castle dragon princess king star moon cake"
)
PLAIN_REQUESTS = ["Tell me a story.", "Tell me a short story.", "Can you tell me a story?"]
SUBJECT_REQUESTS = [
    "Tell me a story about a {}.",
    "Tell me a short story about a {}.",
    "Please write a story with a {}.",
]


@dataclass(frozen=True)
class Text:
    """The documents of one file, or of one retelling of it."""

    name: str
    documents: list[str]


def chat_text(messages: list[dict[str, str]]) -> str:
    """The chat template's output, without the tokenizer that does not exist yet."""
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)


def read_text(path: Path) -> str:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    return path.read_text(encoding="utf-8")


def pieces(document: str) -> list[str]:
    """Cut a book, and leave anything shorter whole."""
    if len(document) <= LONGEST_DOCUMENT:
        return [document]
    starts = range(0, len(document), PIECE_OF_A_BOOK)
    return [document[start : start + PIECE_OF_A_BOOK] for start in starts]


def read_documents(path: Path) -> list[str]:
    text = read_text(path)
    if ".jsonl" in path.name:
        # Not splitlines(): it also breaks at line separators inside a JSON string.
        rows = [json.loads(line) for line in text.split("\n") if line]
        return [chat_text(row["messages"]) for row in rows]
    documents = [document.strip() for document in text.split("<|endoftext|>")]
    return [piece for document in documents if document for piece in pieces(document)]


def story_chat(rng: Random, story: str) -> str:
    """The story as an answer to a request, which names something that the story is about."""
    lowered = story.lower()
    subjects = [word for word in STORY_SUBJECTS.split() if lowered.count(f" {word}") >= 2]
    if subjects:
        subject = rng.choice(subjects)
        request = rng.choice(SUBJECT_REQUESTS).format(subject)
    else:
        request = rng.choice(PLAIN_REQUESTS)
    return chat_text([{"role": "user", "content": request}, {"role": "assistant", "content": story}])


def repeats(name: str) -> int:
    matching = [count for part, count in REPEATS.items() if part in name]
    return matching[-1] if matching else 1


def read_file(path: Path) -> Iterator[Text]:
    documents = read_documents(path)
    if STORIES_AS_CHATS in path.name:
        rng = Random(3)
        short = [story for story in documents if len(story) < LONGEST_STORY_CHAT]
        yield Text(f"{path.name}#chat", [story_chat(rng, story) for story in short])
        yield Text(f"{path.name}#chat2", [story_chat(rng, story) for story in short])
    for _ in range(repeats(path.name)):
        yield Text(path.name, documents)


def read_corpus(folder: Path) -> list[Text]:
    """Every text of the folder, in the order of file names, repeated ones several times."""
    return [text for path in sorted(folder.glob("[!.]*")) for text in read_file(path)]


def held_out_documents(texts: list[Text]) -> set[str]:
    """Every 97th document of the dialogues, books and fairy tales."""
    return {
        document
        for text in texts
        if text.name.startswith(HELD_OUT_PREFIXES)
        for document in text.documents[::HELD_OUT_EVERY]
    }
