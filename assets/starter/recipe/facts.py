"""One-sentence facts about people, each with a question that it answers.

Every draw counts: `random_fact` takes the same number of draws whichever kind it keeps.
"""

from dataclasses import dataclass
from random import Random

from words import ANIMALS, CITIES, COLORS, DAYS, DRINKS, FOODS, JOBS, MONTHS, NAMES, THINGS


@dataclass(frozen=True)
class Fact:
    """One sentence about one person, and a question that it answers."""

    sentence: str
    question: str
    answer: str
    kind: str
    name: str


def home(rng: Random, name: str) -> Fact:
    city = rng.choice(CITIES)
    question = rng.choice([f"Where does {name} live?", f"Which city does {name} live in?"])
    return Fact(f"{name} lives in {city}.", question, city, "city", name)


def owned_thing(rng: Random, name: str) -> Fact:
    color = rng.choice(COLORS)
    thing = rng.choice(THINGS)
    question = rng.choice([f"What color is {name}'s {thing}?", f"Which color is the {thing} of {name}?"])
    return Fact(f"{name} has a {color} {thing}.", question, color, "color", name)


def liked_drink(rng: Random, name: str) -> Fact:
    drink = rng.choice(DRINKS)
    question = rng.choice([f"What does {name} like to drink?", f"What drink does {name} like?"])
    return Fact(f"{name} likes {drink}.", question, drink, "drink", name)


def work(rng: Random, name: str) -> Fact:
    job = rng.choice(JOBS)
    question = rng.choice([f"What is {name}'s job?", f"What does {name} do?"])
    return Fact(f"{name} works as a {job}.", question, job, "job", name)


def age(rng: Random, name: str) -> Fact:
    years = str(rng.randrange(4, 90))
    question = rng.choice([f"How old is {name}?", f"What age is {name}?"])
    return Fact(f"{name} is {years} years old.", question, years, "age", name)


def pet(rng: Random, name: str) -> Fact:
    animal = rng.choice(ANIMALS)
    question = rng.choice([f"What pet does {name} have?", f"Which animal does {name} have?"])
    return Fact(f"{name} has a {animal}.", question, animal, "pet", name)


def meal(rng: Random, name: str) -> Fact:
    food = rng.choice(FOODS)
    day = rng.choice(DAYS)
    question = rng.choice([f"What did {name} eat on {day}?", f"What did {name} eat?"])
    return Fact(f"{name} ate {food} on {day}.", question, food, "food", name)


def trip(rng: Random, name: str) -> Fact:
    city = rng.choice(CITIES)
    month = rng.choice(MONTHS)
    question = rng.choice([f"Where will {name} go in {month}?", f"Which city will {name} visit?"])
    return Fact(f"{name} will visit {city} in {month}.", question, city, "city", name)


FACT_KINDS = [home, owned_thing, liked_drink, work, age, pet, meal, trip]


def random_fact(rng: Random) -> Fact:
    """Draw all eight kinds and keep one: every fact then takes the same number of draws."""
    name = rng.choice(NAMES)
    index = rng.randrange(len(FACT_KINDS))
    return [kind(rng, name) for kind in FACT_KINDS][index]


def add_unless_named(facts: list[Fact], fact: Fact) -> None:
    """Keep one fact per person, so that every question has one answer in its context."""
    if fact.name not in [other.name for other in facts]:
        facts.append(fact)
