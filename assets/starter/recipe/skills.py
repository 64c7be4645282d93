"""Write the synthetic part of the starter's corpus: short chats that teach reading and copying.

    python skills.py 150000 skills.jsonl

Everything is drawn from the lists in words.py with one seeded generator, so the same row count
gives the same bytes. That holds only while the order of random draws stays as it is: a draw that
is moved, added or skipped changes every row after it.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from facts import Fact, add_unless_named, random_fact
from words import (
    ANIMALS,
    CAPITALS,
    COLORS,
    COMMON_KNOWLEDGE,
    DAYS,
    DRINKS,
    FOODS,
    GREETING_REPLIES,
    GREETINGS,
    HAPPY_MESSAGES,
    MONTHS,
    NAMES,
    NUMBER_WORDS,
    OPPOSITES,
    PARTINGS,
    SOUNDS,
    THINGS,
    UNHAPPY_MESSAGES,
    UNKNOWABLE_QUESTIONS,
    UNKNOWABLE_REPLIES,
    USUAL_COLORS,
    WHO_QUESTIONS,
    WHO_REPLIES,
)

SEED = 7

Turn = tuple[str, str]


def capitalised(text: str) -> str:
    """Upper-case the first letter only; `str.capitalize` would lower the rest ("Oslo")."""
    return text[0].upper() + text[1:]


def filled(rng: Random, template: str) -> str:
    """Fill a message template; all four words are drawn whether it uses them or not."""
    return template.format(
        thing=rng.choice(THINGS),
        food=rng.choice(FOODS),
        name=rng.choice(NAMES),
        drink=rng.choice(DRINKS),
    )


def context_question(rng: Random) -> Turn:
    """A question about one to four facts, before or after them, in several layouts."""
    facts: list[Fact] = []
    while len(facts) < rng.randrange(1, 5):
        add_unless_named(facts, random_fact(rng))
    fact = rng.choice(facts)
    separator = rng.choice([" ", "\n", "\n- "])
    body = separator.join(other.sentence for other in facts)
    if separator == "\n- ":
        body = f"- {body}"
    user = rng.choice(
        [
            f"{body}\n\n{fact.question}",
            f"Context:\n{body}\n\nQuestion: {fact.question}",
            f"Read this: {body}\n{fact.question}",
            f"{fact.question}\n\n{body}",
        ]
    )
    short = f"{capitalised(fact.answer)}."
    return user, rng.choice([short, fact.sentence, short])


def line_lookup(rng: Random) -> Turn:
    """Two to six numbered lines; find, copy, cite or answer from one of them."""
    facts: list[Fact] = []
    line_count = rng.randrange(2, 7)
    while len(facts) < line_count:
        add_unless_named(facts, random_fact(rng))
    index = rng.randrange(line_count)
    fact = facts[index]
    number = index + 1
    style = rng.choice(["[{}] ", "{}. ", "({}) ", "Line {}: "])
    lines = [style.format(place) + other.sentence for place, other in enumerate(facts, start=1)]
    body = "\n".join(lines)
    short = f"{capitalised(fact.answer)}."
    task = rng.randrange(5)
    if task == 0:
        request = rng.choice(
            [
                f"Which line is about {fact.name}?",
                f"What is the number of the line about {fact.name}?",
            ]
        )
        answer = rng.choice([f"Line {number}.", f"{number}"])
    elif task == 1:
        request = rng.choice([f"Copy line {number}.", f"What does line {number} say?"])
        answer = fact.sentence
    elif task == 2:
        request = rng.choice(
            [
                f"Which line answers this: {fact.question}",
                f"Where is the answer to this question: {fact.question}",
            ]
        )
        answer = rng.choice([f"Line {number}.", f"{number}"])
    elif task == 3:
        request = f"{fact.question} Which line says so?"
        answer = f"{short} Line {number} says so."
    else:
        request = fact.question
        answer = rng.choice([short, fact.sentence])
    return f"{body}\n\n{request}", answer


def extraction(rng: Random) -> Turn:
    """Pull the name or the value out of one sentence."""
    fact = random_fact(rng)
    key = rng.choice(["name", fact.kind])
    user = rng.choice(
        [
            f"Find the {key}: {fact.sentence}",
            f"Extract the {key} from this text: {fact.sentence}",
            f"Text: {fact.sentence}\nWhat is the {key}?",
            f"{fact.sentence}\n{key.capitalize()}?",
        ]
    )
    return user, fact.name if key == "name" else fact.answer


def fact_list(rng: Random) -> Turn:
    """Turn a sentence, at times with a distracting one after it, into two `key: value` lines."""
    fact = random_fact(rng)
    distracted = f"{fact.sentence} {filled(rng, rng.choice(HAPPY_MESSAGES))}"
    text = rng.choice([fact.sentence, fact.sentence, distracted])
    user = rng.choice(
        [
            f"Make a list from this: {text}",
            f"Write the facts as lines: {text}",
            f"List name and {fact.kind}: {text}",
        ]
    )
    return user, f"name: {fact.name}\n{fact.kind}: {fact.answer}"


def copying(rng: Random) -> Turn:
    """Repeat, reverse, count, pick from or upper-case two to five words."""
    words = rng.sample(THINGS[:16] + ANIMALS + COLORS, rng.randrange(2, 6))
    text = " ".join(words)
    tasks = [
        (f"Repeat: {text}", text),
        (f"Say this backwards: {text}", " ".join(reversed(words))),
        (f"What is the first word? {text}", words[0]),
        (f"What is the last word? {text}", words[-1]),
        (f"How many words are here? {text}", str(len(words))),
        (f"Write in capital letters: {text}", text.upper()),
    ]
    return tasks[rng.randrange(len(tasks))]


def mood(rng: Random) -> Turn:
    """Say whether a short customer message is happy or unhappy."""
    happy = rng.random() < 0.5
    message = filled(rng, rng.choice(HAPPY_MESSAGES if happy else UNHAPPY_MESSAGES))
    user = rng.choice(
        [
            f"Is this message happy or unhappy? {message}",
            f"Message: {message}\nHappy or unhappy?",
            f"Does the writer sound happy or unhappy?\n{message}",
        ]
    )
    return user, "Happy." if happy else "Unhappy."


def arithmetic(rng: Random) -> Turn:
    """Small sums, comparisons and number words; differences never go below zero."""
    first = rng.randrange(0, 21)
    second = rng.randrange(0, 11)
    task = rng.randrange(4)
    if task == 0:
        questions = [
            f"What is {first} plus {second}?",
            f"{first} + {second} = ?",
            f"Add {first} and {second}.",
        ]
        answer = str(first + second)
    elif task == 1 and first >= second:
        questions = [f"What is {first} minus {second}?", f"{first} - {second} = ?"]
        answer = str(first - second)
    elif task == 2:
        questions = [
            f"Which is bigger, {first} or {second}?",
            f"Pick the larger number: {first}, {second}",
        ]
        answer = str(max(first, second))
    else:
        questions = [f"Write {first} in words.", f"How do you spell the number {first}?"]
        answer = NUMBER_WORDS[first]
    return rng.choice(questions), answer


def animal_sound(rng: Random) -> Turn:
    animal, sound = rng.choice(list(SOUNDS.items()))
    question = rng.choice([f"What sound does a {animal} make?", f"What does a {animal} say?"])
    return question, rng.choice([f"A {animal} says {sound}.", f"{sound.capitalize()}."])


def opposite(rng: Random) -> Turn:
    word, other = rng.choice(list(OPPOSITES.items()))
    question = rng.choice([f"What is the opposite of {word}?", f"Opposite of {word}?"])
    return question, f"{other.capitalize()}."


def usual_color(rng: Random) -> Turn:
    thing, color = rng.choice(list(USUAL_COLORS.items()))
    question = rng.choice([f"What color is {thing}?", f"Tell me the color of {thing}."])
    return question, f"{capitalised(thing)} is {color}."


def capital_city(rng: Random) -> Turn:
    country, city = rng.choice(list(CAPITALS.items()))
    question = rng.choice([f"What is the capital of {country}?", f"Name the capital city of {country}."])
    return question, f"The capital of {country} is {city}."


def next_day(rng: Random) -> Turn:
    index = rng.randrange(len(DAYS))
    day = DAYS[index]
    question = rng.choice([f"What day comes after {day}?", f"Which day is next after {day}?"])
    return question, f"{DAYS[(index + 1) % len(DAYS)]}."


def next_month(rng: Random) -> Turn:
    index = rng.randrange(len(MONTHS))
    month = MONTHS[index]
    question = rng.choice([f"What month comes after {month}?", f"Which month follows {month}?"])
    return question, f"{MONTHS[(index + 1) % len(MONTHS)]}."


def common_knowledge(rng: Random) -> Turn:
    return rng.choice(COMMON_KNOWLEDGE)


WORLD_KINDS = [
    animal_sound,
    opposite,
    usual_color,
    capital_city,
    next_day,
    next_month,
    common_knowledge,
]


def world(rng: Random) -> Turn:
    """A question about something everybody knows, answered without a context."""
    return WORLD_KINDS[rng.randrange(len(WORLD_KINDS))](rng)


def social(rng: Random) -> Turn:
    """Greetings, who are you, partings, and questions it should decline."""
    task = rng.randrange(4)
    if task == 0:
        return rng.choice(GREETINGS), rng.choice(GREETING_REPLIES)
    if task == 1:
        return rng.choice(WHO_QUESTIONS), rng.choice(WHO_REPLIES)
    if task == 2:
        return rng.choice(PARTINGS)
    return rng.choice(UNKNOWABLE_QUESTIONS), rng.choice(UNKNOWABLE_REPLIES)


SKILLS: list[tuple[Callable[[Random], Turn], int]] = [
    (context_question, 24),
    (line_lookup, 26),
    (extraction, 14),
    (fact_list, 10),
    (copying, 12),
    (mood, 8),
    (arithmetic, 8),
    (world, 9),
    (social, 5),
]
# These two are small enough to run dry, so their rows may repeat.
REPEATABLE = (world, social)


def single_turn_chats(rng: Random, count: int) -> list[list[dict[str, str]]]:
    """Draw skills by weight until there are `count` chats."""
    weighted = [skill for skill, weight in SKILLS for _ in range(weight)]
    seen: set[Turn] = set()
    chats = []
    while len(chats) < count:
        skill = rng.choice(weighted)
        turn = skill(rng)
        if turn in seen and skill not in REPEATABLE:
            continue
        seen.add(turn)
        user, assistant = turn
        chats.append([{"role": "user", "content": user}, {"role": "assistant", "content": assistant}])
    return chats


def multi_turn_chats(
    rng: Random, chats: list[list[dict[str, str]]], count: int
) -> list[list[dict[str, str]]]:
    """Join two or three unrelated chats, so that the model learns to leave a topic behind."""
    joined = []
    for _ in range(count):
        parts = rng.sample(chats, rng.randrange(2, 4))
        joined.append([message for part in parts for message in part])
    return joined


def write_skills(count: int, path: Path) -> None:
    """Write `count` single-turn chats and a sixth as many multi-turn ones, one JSON row each."""
    rng = Random(SEED)
    chats = single_turn_chats(rng, count)
    chats += multi_turn_chats(rng, chats, count // 6)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for messages in chats:
            file.write(json.dumps({"messages": messages}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="single-turn chats to draw")
    parser.add_argument("path", type=Path, help="the .jsonl file to write")
    arguments = parser.parse_args()
    write_skills(arguments.count, arguments.path)


if __name__ == "__main__":
    main()
