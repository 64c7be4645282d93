"""Write the sample datasets: cited-answers, ticket-triage and plain-style.

    python make_samples.py            rewrite the files beside this script
    python make_samples.py FOLDER     write them somewhere else

Needs only the standard library. Each dataset has a seed of its own: the same script gives the
same bytes, and a change to one dataset leaves the others as they are.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

Row = dict[str, object]
Split = tuple[list[Row], list[Row]]


def listed(words: str) -> list[str]:
    """Spare a long list its quotes and commas."""
    return words.split()


def capitalised(text: str) -> str:
    """Upper-case the first letter only; `str.capitalize` would lower the rest ("Oslo")."""
    return text[0].upper() + text[1:]


def distinct_rows(draw: Callable[[], Row], count: int, taken: set[str]) -> list[Row]:
    """Draw until there are `count` rows that are not in `taken`, and add them to it."""
    rows: list[Row] = []
    while len(rows) < count:
        row = draw()
        key = json.dumps(row)
        if key not in taken:
            taken.add(key)
            rows.append(row)
    return rows


# cited-answers: what an adapter has to learn here is to cite, not to read. So the words are ones
# that the starter knows well (most are one token), and no two sources of a row are of one kind:
# it finds nearly every answer then, and misses one in six where kinds repeat. Words that would
# need "an" are left out.

PEOPLE = listed("Mia Tom Anna Ben Lily Sam Max Ella Leo Jack Ruby Noah Sara Finn Luke Tara Clara")
CITIES = listed("London Rome Lima Madrid Boston Dublin Seoul")
DRINKS = listed("tea coffee milk water juice")
JOBS = listed("teacher doctor farmer nurse singer driver cook builder")
ANIMALS = listed("cat dog horse cow duck sheep pig goat hen fox bear lion tiger mouse rabbit frog")
COLORS = listed("red blue green yellow black white brown pink purple grey")
THINGS = listed("book ball hat cup pen bag key lamp chair box kite drum phone watch shirt bike")
# A sentence without its full stop, and the question that it answers.
FACTS = [
    ("{name} lives in {city}", "Where does {name} live?"),
    ("{name} likes {drink}", "What does {name} like to drink?"),
    ("{name} works as a {job}", "What is {name}'s job?"),
    ("{name} has a {animal}", "What pet does {name} have?"),
    ("{name} has a {color} {thing}", "What color is {name}'s {thing}?"),
    ("{name} is {age} years old", "How old is {name}?"),
]


def filled_fact(rng: Random, name: str, templates: tuple[str, str]) -> tuple[str, str]:
    """The sentence and the question with the same words in both."""
    words = {
        "name": name,
        "city": rng.choice(CITIES),
        "drink": rng.choice(DRINKS),
        "job": rng.choice(JOBS),
        "animal": rng.choice(ANIMALS),
        "color": rng.choice(COLORS),
        "thing": rng.choice(THINGS),
        "age": rng.randrange(4, 90),
    }
    sentence, question = templates
    return sentence.format(**words), question.format(**words)


def cited_answer(rng: Random) -> Row:
    """Three to five numbered sources about different people, one question, one citation."""
    count = rng.choice([3, 4, 5])
    people_and_kinds = zip(rng.sample(PEOPLE, count), rng.sample(FACTS, count), strict=True)
    facts = [filled_fact(rng, name, templates) for name, templates in people_and_kinds]
    number = rng.randrange(count) + 1
    sentence, question = facts[number - 1]
    sources = [f"[{place}] {text}." for place, (text, _) in enumerate(facts, start=1)]
    return {
        "messages": [
            {"role": "user", "content": "\n".join(sources) + f"\n\n{question}"},
            {"role": "assistant", "content": f"{sentence} [{number}]."},
        ]
    }


def cited_answers() -> Split:
    """Four hundred rows to learn from and a hundred to be scored on."""
    rng = Random(11)
    taken: set[str] = set()
    train = distinct_rows(lambda: cited_answer(rng), 400, taken)
    held_out = distinct_rows(lambda: cited_answer(rng), 100, taken)
    return train, held_out


# ticket-triage: what customers write on four channels, and which team should read it.

DEVICES = listed("lamp kettle toaster fan heater radio speaker clock mixer camera printer blender")
DAYS = listed("Monday Tuesday Wednesday Thursday Friday")
MONTHS = listed("January March April May June August October November")
COMPLAINTS = {
    "billing": [
        "I was charged twice for the {device}",
        "the bill for {month} is {amount} too high",
        "you took {amount} from my card and I did not buy anything",
        "I paid for the {device} on {day} and the invoice still says unpaid",
        "the discount did not come off the price of the {device}",
        "I need an invoice for the {device} I bought in {month}",
        "you still owe me a refund of {amount}",
        "the price of the {device} went up by {amount} at the checkout",
    ],
    "delivery": [
        "the {device} has not arrived yet",
        "my parcel was left with a stranger in {city}",
        "the driver came on {day} when nobody was at home",
        "tracking says that my {device} is still in {city}",
        "the parcel was sent to my old street in {city}",
        "the {device} was due to come on {day} and it did not",
        "the parcel came torn open and the {device} was not in it",
        "I need the {device} shipped to {city} before {day}",
    ],
    "account": [
        "I have not been able to log in since {day}",
        "the link to reset my password does not work",
        "I want to change the email address in my profile",
        "somebody in {city} signed in with my name",
        "the code for signing in never comes",
        "I want you to delete my profile before {day}",
        "my user name has been spelled wrong since {month}",
        "the app says that my password is wrong",
    ],
    "product": [
        "the {device} stopped working after {count} days",
        "the {device} is not the color I chose",
        "a part of the {device} is broken",
        "the {device} makes a strange noise",
        "the {device} does not turn on",
        "I do not know how to clean the {device}",
        "the {device} is smaller than in the picture",
        "the {device} smells of smoke when it is on",
    ],
}
# No training row has these, so that the held-out score says something about new wording.
NEW_COMPLAINTS = {
    "billing": [
        "there are two payments of {amount} on my bank statement",
        "the invoice for the {device} shows the wrong tax",
    ],
    "delivery": [
        "the courier threw the {device} over the fence",
        "my parcel has been stuck in {city} since {day}",
    ],
    "account": [
        "I am locked out after too many wrong passwords",
        "my profile still shows my old name",
    ],
    "product": [
        "the {device} gets far too hot",
        "the {device} came without a manual and will not start",
    ],
}
# Channel: the layout of a message, its openings, and what the customer asks for.
CHANNELS = {
    "email": (
        "{opening}\n\n{complaint}. {request}\n\nKind regards,\n{name}",
        ["Dear support team,", "Good morning,", "Hello,"],
        [
            "Could you please look into this?",
            "I would be grateful for a quick answer.",
            "Please let me know what I should do next.",
        ],
    ),
    "chat": (
        "{opening} {complaint}. {request}",
        ["hi,", "hey,", "hello there,", "hi again,"],
        ["pls help", "what now?", "can you fix it?", "thx"],
    ),
    "phone": (
        "This is {name}. {opening} {complaint}. {request}",
        ["Um, well,", "So, basically,", "Yeah, so,"],
        ["Can somebody call me back?", "You can reach me on {day}.", "That is all, bye."],
    ),
    "form": (
        "Order: {order}\nMessage: {complaint}. {request}",
        [""],
        ["Please reply by email.", "Please reply before {day}.", "Thank you."],
    ),
}
TRAIN_PER_CELL = 20
HELD_OUT_PER_CELL = 5
NEW_WORDING_PER_CELL = 2


def ticket(rng: Random, label: str, channel: str, complaints: list[str]) -> Row:
    """One of the complaints, phrased the way people write on this channel."""
    words = {
        "device": rng.choice(DEVICES),
        "city": rng.choice(CITIES),
        "day": rng.choice(DAYS),
        "month": rng.choice(MONTHS),
        "amount": f"${rng.randrange(5, 95)}",
        "count": str(rng.randrange(2, 30)),
        "order": str(rng.randrange(1000, 10000)),
        "name": rng.choice(PEOPLE),
    }
    layout, openings, requests = CHANNELS[channel]
    complaint = rng.choice(complaints).format(**words)
    request = rng.choice(requests).format(**words)
    if channel in ("email", "form"):
        complaint = capitalised(complaint)
    text = layout.format(opening=rng.choice(openings), complaint=complaint, request=request, **words)
    if channel == "chat":
        text = text.lower()
    return {"text": text, "label": label, "group": channel}


def ticket_cell(rng: Random, label: str, channel: str, taken: set[str]) -> Split:
    """The rows of one label on one channel."""

    def rows(complaints: list[str], count: int) -> list[Row]:
        return distinct_rows(lambda: ticket(rng, label, channel, complaints), count, taken)

    train = rows(COMPLAINTS[label], TRAIN_PER_CELL)
    held_out = rows(NEW_COMPLAINTS[label], NEW_WORDING_PER_CELL)
    held_out += rows(COMPLAINTS[label], HELD_OUT_PER_CELL - NEW_WORDING_PER_CELL)
    return train, held_out


def ticket_triage() -> Split:
    """The same number of rows for every label on every channel, in shuffled order."""
    rng = Random(12)
    taken: set[str] = set()
    train: list[Row] = []
    held_out: list[Row] = []
    for label in COMPLAINTS:
        for channel in CHANNELS:
            cell_train, cell_held_out = ticket_cell(rng, label, channel, taken)
            train += cell_train
            held_out += cell_held_out
    rng.shuffle(train)
    rng.shuffle(held_out)
    return train, held_out


# plain-style: pairs of what an office writes and what it means.

ACTIONS = [
    ("submit the completed application form", "send in the form"),
    ("remit the outstanding balance", "pay what you owe"),
    ("furnish evidence of residence", "prove where you live"),
    ("provide notification of the new address", "tell us your new address"),
    ("forward the original receipt", "send us the receipt"),
    ("commence the training course", "start the course"),
    ("complete the enclosed questionnaire", "fill in the form we sent"),
    ("utilize the side entrance", "use the side door"),
    ("return all items on loan", "bring back what you borrowed"),
    ("present a valid means of identification", "show your identity card"),
    ("obtain written authorization", "get our permission in writing"),
    ("terminate the agreement", "end the contract"),
    ("contact reception by telephone", "call the front desk"),
    ("vacate the premises", "leave the building"),
    ("select an alternative date", "choose another day"),
    ("purchase replacement parts", "buy new parts"),
]
TIMES = [
    ("prior to {day}", "before {day}"),
    ("subsequent to the meeting", "after the meeting"),
    ("no later than the end of {month}", "by the end of {month}"),
    ("within a period of {count} days", "within {count} days"),
    ("in the course of {day} morning", "on {day} morning"),
    ("in advance of the holiday", "before the holiday"),
    ("following receipt of this letter", "after you get this letter"),
    ("during the month of {month}", "in {month}"),
]
REASONS = [
    ("Owing to inclement weather", "Because of bad weather"),
    ("Due to insufficient staffing", "Because we have too few people"),
    ("On account of essential maintenance", "Because we must do repairs"),
    ("In view of recent complaints", "Because people have complained"),
    ("As a consequence of rising expenditure", "Because costs have gone up"),
    ("Following an interruption of the water supply", "Because the water was cut off"),
]
SENTENCES = [
    ("Applicants are hereby required to {action} {time}.", "You must {action} {time}."),
    ("It is requested that all residents {action} {time}.", "Please {action} {time}."),
    (
        "Members are advised that it is necessary to {action} {time}.",
        "You need to {action} {time}.",
    ),
    (
        "Visitors are respectfully reminded to {action} {time}.",
        "Please remember to {action} {time}.",
    ),
    ("There is no obligation to {action} {time}.", "You do not have to {action} {time}."),
    ("It is permissible to {action} {time}.", "You may {action} {time}."),
    (
        "Failure to {action} {time} may result in the imposition of a fine.",
        "If you do not {action} {time}, you may have to pay a fine.",
    ),
    (
        "Should you be unable to {action} {time}, kindly address a letter to this office.",
        "If you cannot {action} {time}, please write to us.",
    ),
    (
        "Persons wishing to {action} {time} should direct inquiries to a member of staff.",
        "If you want to {action} {time}, ask our staff.",
    ),
    (
        "Assistance will be rendered to those required to {action} {time}.",
        "We will help you if you have to {action} {time}.",
    ),
    (
        "{reason}, it has become necessary for all tenants to {action} {time}.",
        "{reason}, you must {action} {time}.",
    ),
    (
        "{reason}, participants are requested to {action} {time}.",
        "{reason}, please {action} {time}.",
    ),
]
INSTRUCTION = "Rewrite this in plain, short words."


def rewrite(rng: Random) -> Row:
    """The same sentence twice: each slot is filled with the two sides of one pair."""
    words = {
        "day": rng.choice(DAYS),
        "month": rng.choice(MONTHS),
        "count": rng.choice(["five", "seven", "ten", "fourteen", "twenty", "thirty"]),
    }
    sentences = rng.choice(SENTENCES)
    actions = rng.choice(ACTIONS)
    times = rng.choice(TIMES)
    reasons = rng.choice(REASONS)
    stiff, plain = [
        sentence.format(action=action, time=time.format(**words), reason=reason)
        for sentence, action, time, reason in zip(sentences, actions, times, reasons, strict=True)
    ]
    return {"instruction": INSTRUCTION, "input": stiff, "output": plain}


def plain_style() -> Split:
    """Three hundred rows to learn from and sixty to be scored on."""
    rng = Random(13)
    taken: set[str] = set()
    train = distinct_rows(lambda: rewrite(rng), 300, taken)
    held_out = distinct_rows(lambda: rewrite(rng), 60, taken)
    return train, held_out


DATASETS = {
    "cited-answers": cited_answers,
    "ticket-triage": ticket_triage,
    "plain-style": plain_style,
}


def write_rows(path: Path, rows: list[Row]) -> None:
    """One JSON object a line, with the same line ends on every system."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_samples(folder: Path) -> None:
    """Write train.jsonl and held_out.jsonl of every dataset into its own sub-folder."""
    for name, make in DATASETS.items():
        train, held_out = make()
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_rows(folder / name / "train.jsonl", train)
        write_rows(folder / name / "held_out.jsonl", held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    write_samples(parser.parse_args().folder)


if __name__ == "__main__":
    main()
