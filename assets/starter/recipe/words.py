"""Word lists and sentences that the starter's synthetic chats are drawn from.

Order matters: a seeded draw picks by place, so a word that moves changes the corpus.
"""


def listed(words: str) -> list[str]:
    """Spare a long list its quotes and commas."""
    return words.split()


NAMES = listed(
    "Mia Tom Anna Ben Lily Sam Zoe Max Ella Leo Nina Jack Ruby Omar Ivy Noah Sara Finn Maya Luke "
    "Rosa Adam Kofi Aisha Diego Yuki Priya Hugo Lena Amir Tara Owen Clara Felix Nora Ravi Grace "
    "Pablo Elsa Kai"
)
CITIES = listed(
    "Paris London Rome Cairo Lima Oslo Tokyo Delhi Madrid Berlin Accra Lagos Boston Dublin Seoul "
    "Quito Vienna Prague Athens Nairobi"
)
ANIMALS = listed(
    "cat dog horse cow duck sheep pig goat hen fox bear lion tiger mouse rabbit frog owl fish bee ant"
)
COLORS = listed("red blue green yellow black white brown pink orange purple grey")
FOODS = listed(
    "apples bread soup rice pasta cheese cake eggs carrots pizza salad bananas cookies beans noodles pears"
)
DRINKS = listed("tea coffee milk water juice cocoa lemonade")
JOBS = listed("teacher doctor baker farmer pilot nurse singer painter driver cook writer builder")
THINGS = listed("book ball hat cup pen bag key lamp chair box kite drum phone watch shirt bike train set")
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = listed("January February March April May June July August September October November December")
NUMBER_WORDS = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)

SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "lion": "roar",
    "bee": "buzz",
    "frog": "ribbit",
    "owl": "hoot",
    "horse": "neigh",
    "mouse": "squeak",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "happy": "sad",
    "up": "down",
    "day": "night",
    "old": "young",
    "wet": "dry",
    "light": "dark",
    "open": "closed",
    "full": "empty",
    "loud": "quiet",
    "hard": "soft",
    "early": "late",
    "rich": "poor",
    "tall": "short",
    "near": "far",
    "left": "right",
    "good": "bad",
    "clean": "dirty",
}
USUAL_COLORS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "a banana": "yellow",
    "coal": "black",
    "milk": "white",
    "a ripe tomato": "red",
    "a carrot": "orange",
    "chocolate": "brown",
    "the sun": "yellow",
    "an elephant": "grey",
    "a flamingo": "pink",
}
CAPITALS = {
    "France": "Paris",
    "England": "London",
    "Italy": "Rome",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Japan": "Tokyo",
    "India": "New Delhi",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Ireland": "Dublin",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Kenya": "Nairobi",
}
COMMON_KNOWLEDGE = [
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many legs does a dog have?", "A dog has four legs."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows drink?", "Cows drink water."),
    ("Where do fish live?", "Fish live in water."),
    ("What falls from clouds?", "Rain falls from clouds."),
]

HAPPY_MESSAGES = [
    "I love this {thing}, it works so well.",
    "What a great day, thank you!",
    "The {food} here are wonderful.",
    "{name} was so kind and helpful.",
    "This {thing} is perfect, I am very happy.",
    "Best {drink} I have ever had!",
    "The staff were friendly and quick.",
    "I am so glad I bought this {thing}.",
]
UNHAPPY_MESSAGES = [
    "This {thing} broke after one day.",
    "I am very unhappy with the {food}.",
    "{name} was rude and slow.",
    "The {drink} was cold and tasted bad.",
    "I want my money back for this {thing}.",
    "Nobody answered my call, it is terrible.",
    "The {thing} came late and damaged.",
    "I will never buy this {thing} again.",
]

GREETINGS = [
    "Hello!",
    "Hi!",
    "Hey there!",
    "Good morning!",
    "Hello, how are you?",
    "Hi, how are you today?",
]
GREETING_REPLIES = [
    "Hello! How can I help you?",
    "Hi! What would you like to talk about?",
    "Hello! I am well, thank you. How are you?",
    "Good day! How can I help?",
]
WHO_QUESTIONS = [
    "Who are you?",
    "What are you?",
    "What is your name?",
    "Tell me about yourself.",
    "Are you a person?",
    "What can you do?",
]
WHO_REPLIES = [
    "I am Starter, a very small language model. I am here so you can try out fine-tuning.",
    "My name is Starter. I am a tiny language model that knows simple English.",
    "I am Starter, a small language model. I can answer simple questions, tell short stories and "
    "read short texts.",
]
PARTINGS = [
    ("Thank you!", "You are welcome!"),
    ("Thanks a lot.", "You are welcome!"),
    ("Goodbye!", "Goodbye! Have a nice day."),
    ("Bye!", "Goodbye!"),
    ("See you later.", "See you later! Take care."),
]
UNKNOWABLE_QUESTIONS = [
    "What is the weather like today?",
    "What time is it?",
    "Who won the game last night?",
    "What did I eat today?",
]
UNKNOWABLE_REPLIES = [
    "I am sorry, I do not know that.",
    "I do not know. I can only read what you tell me.",
]
