"""What the functions of `plumbline` return. Losses are in nats per supervised token unless said otherwise."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A run as it stands.

    :param state: queued, preparing, running, completed, stopped, failed or interrupted
    :param dataset: the id of its dataset, of a mix the first
    :param step: optimizer steps that are done, of ``total_steps``, which is None before it has begun
    :param loss: of the last step; for methods other than sft and pretraining, that method's loss
    :param eval_loss: the last on the held-out rows, as ``base_eval_loss`` and ``best_eval_loss`` (of step
        ``best_step``) are on the same ones
    :param parent: the run that it comes from: a branch, the next of a rank schedule, a reproduction
    :param error: why it failed, in a sentence
    :param created_at: when it was stored, in seconds since 1970
    """

    id: int
    name: str
    state: str
    base: str
    dataset: int
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    base_eval_loss: float | None
    best_eval_loss: float | None
    best_step: int | None
    parent: int | None
    error: str | None
    created_at: float


@dataclass(frozen=True)
class Point:
    """What was measured at an optimizer step; None for what was not, NaN for what was no number.

    :param grad_norm: the gradient's length before it was clipped
    :param memory_gb: peak memory so far, in GB
    :param eval_loss_of: the held-out loss of each dataset by name, where a run learns from several
    :param rewards: what methods with rewards measure, by name
    """

    step: int
    epoch: float | None
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    memory_gb: float | None
    eval_loss_of: dict[str, float]
    rewards: dict[str, float]


@dataclass(frozen=True)
class NearDuplicates:
    """Rows of a dataset that say nearly the same.

    :param rows: that were looked at
    :param groups: of rows that are alike
    :param repeated: rows that nearly repeat an earlier one
    :param first: numbers, from 1, of the first of these
    :param threshold: how alike rows are that count, from 0.7 to 1
    """

    rows: int
    groups: int
    repeated: int
    first: tuple[int, ...]
    threshold: float


@dataclass(frozen=True)
class Measured:
    """Base or adapter on the held-out rows.

    :param perplexity: exp(loss)
    :param tokens: supervised tokens that the loss is the mean of
    :param exact_match: share of answers that are the reference; None where rows have no answers
    :param token_f1: mean overlap with the reference, from 0 to 1; None where rows have no answers
    """

    loss: float
    perplexity: float
    tokens: int
    exact_match: float | None
    token_f1: float | None


@dataclass(frozen=True)
class Difference:
    """The adapter's share of exact answers less the base's, with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Preference:
    """How judged answers are told apart by base or adapter.

    :param accuracy: share of rows whose better answer has the higher reward
    :param margin: mean reward of better answers less that of worse ones; None where one kind is missing
    """

    accuracy: float
    margin: float | None


@dataclass(frozen=True)
class Evaluation:
    """A run's adapter beside its base, on the same held-out rows.

    :param rows: held-out rows whose loss was taken
    :param answers: rows that were answered; 0 for plain texts
    :param difference: of exact answers; None where nothing was answered
    :param base_preference: of methods that learn from judged answers, where the base is no reference
    :param adapter_preference: of methods that learn from judged answers
    :param sentence: the result in words
    """

    run: int
    rows: int
    answers: int
    base: Measured
    adapter: Measured
    difference: Difference | None
    base_preference: Preference | None
    adapter_preference: Preference | None
    sentence: str


@dataclass(frozen=True)
class EngineCheck:
    """The losses of a run's first steps, computed by our engine and by TRL's.

    :param largest: the largest distance of the two curves, in nats, at step ``step``
    :param spread: the largest distance of two seeds of TRL's, in nats
    :param ours: the loss of each step; ``trl`` and ``other_seed`` are TRL's, with the same and another seed
    """

    agrees: bool
    largest: float
    step: int
    spread: float
    ours: tuple[float, ...]
    trl: tuple[float, ...]
    other_seed: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """What one side answered; ``note`` says what ended it, when the model itself did not."""

    text: str
    note: str


@dataclass(frozen=True)
class Answers:
    """Answers to the same question: of the base, and of the base with the run's adapter."""

    base: Answer
    adapter: Answer
