"""The settings of adapter and training: their labels, helps and limits.

`plumbline.config.schema` puts them together with what is learned from; import them from there.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from plumbline.config.field import Section, setting

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUPS = ("all-linear", "attention", "mlp")  # names that stand for layers of every family
_LAYERS = re.compile(r"\s*\d+\s*(-\s*\d+\s*)?(,\s*\d+\s*(-\s*\d+\s*)?)*")
_MODULE = re.compile(r"[A-Za-z0-9_.-]+")
INITIALISATIONS = ("default", "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva")
# These leave the base as it is: half of the adapter holds what they begin with, negated and frozen.
HALVED = ("pissa", "olora")


class LoraSection(Section):
    """The adapter: small trainable matrices beside the frozen weights (Hu et al., 2021)."""

    r: int = setting(
        16,
        "LoRA rank r",
        "Size of the adapter: higher = more capacity, memory and time",
        simple=True,
        ge=1,
        le=1024,
    )
    alpha: float = setting(
        32, "Alpha", "Strength of the adapter; usually 2 × r, raise both together", gt=0, le=4096
    )
    dropout: float = setting(
        0.0,
        "LoRA dropout",
        "Share of adapter inputs dropped; a few percent fight overfitting on small data, but any value "
        "above 0 leaves the fast path",
        ge=0,
        lt=1,
    )
    rank_schedule: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = setting(
        (),
        "Rank schedule",
        "Train several runs one after the other, like 4, 8, 16: each begins with what the one before has "
        "learned; alpha is for lora.r, and keeps its proportion",
        max_length=8,
    )
    target_modules: tuple[str, ...] = setting(
        PROJECTIONS,
        "Target modules",
        "Linear layers that get an adapter: names, or attention, mlp or all-linear for any family; all learn "
        "most, q_proj and v_proj alone are smallest",
        heading="Where",
        min_length=1,
        max_length=64,
    )
    layers: str = setting(
        "",
        "Layers",
        "Decoder layers that get an adapter, like 0-11 or 8,10,12-15; empty means all, fewer = less memory",
        max_length=200,
    )
    bias: Literal["none", "all", "lora_only"] = setting(
        "none",
        "Biases",
        "Also train biases: all of the model, or those of layers with an adapter; few models have any, and "
        "it leaves the fast path",
    )
    modules_to_save: tuple[str, ...] = setting(
        (),
        "Modules to save",
        "Train and save these whole, such as embed_tokens or lm_head for new words; large, and it leaves the "
        "fast path",
        max_length=16,
    )
    use_rslora: bool = setting(
        False,
        "rsLoRA",
        "Scale by alpha / √r in place of alpha / r (Kalajdzievski, 2023): high ranks learn more; lower alpha "
        "with it",
        heading="Variant",
    )
    use_dora: bool = setting(
        False,
        "DoRA",
        "Learn length and direction of weights apart (Liu et al., 2024): better at low ranks, but slower and "
        "off the fast path",
    )
    init_lora_weights: str = setting(
        "default",
        "Initialisation",
        "default, gaussian or orthogonal; pissa, pissa_niter_N (quicker) or olora begin at the base's main "
        "directions and double the adapter; loftq makes up for quantisation; eva looks at the data",
        max_length=40,
        other_names=("init",),
    )
    loraplus_lr_ratio: float | None = setting(
        None,
        "LoRA+ learning-rate ratio",
        "Learning rate of B over that of A (Hayou et al., 2024): 4 to 16 learn faster, with a lower learning "
        "rate; empty means 1",
        ge=1,
        le=1000,
        other_names=("plus_ratio",),
    )

    @field_validator("target_modules", "modules_to_save", "rank_schedule", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """The command line gives names, or ranks, with commas between them."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("target_modules", "modules_to_save")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _MODULE.fullmatch(name):
                raise ValueError(f"takes names of modules, not patterns: {name[:40]!r} is none")
        if len(set(value)) < len(value):
            raise ValueError("names a module twice")
        return value

    @field_validator("rank_schedule")
    @classmethod
    def _growing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(after <= before for before, after in zip(value, value[1:], strict=False)):
            raise ValueError("must grow, like 4, 8, 16")
        return value

    @field_validator("layers")
    @classmethod
    def _ranges(cls, value: str) -> str:
        if not value.strip():
            return ""
        if not _LAYERS.fullmatch(value) or any(number >= 10_000 for number in _bounds(value)):
            raise ValueError("must be layer numbers like 0-11 or 8,10,12-15")
        for part in value.split(","):
            first, _, last = part.partition("-")
            if last and int(first) > int(last):
                raise ValueError(f"has a range that runs backwards, {part.strip()}")
        return value.replace(" ", "")

    @field_validator("init_lora_weights")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in INITIALISATIONS and not re.fullmatch(r"pissa_niter_\d{1,2}", value):
            raise ValueError(
                f"must be one of {', '.join(INITIALISATIONS)} or pissa_niter_N with N from 0 to 99"
            )
        return value

    @property
    def layer_numbers(self) -> tuple[int, ...] | None:
        """The layers that get an adapter, in order; None for all."""
        if not self.layers:
            return None
        found: set[int] = set()
        for part in self.layers.split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
        return tuple(sorted(found))

    @property
    def halved(self) -> bool:
        """Whether half of the adapter is frozen; see `plumbline.models.adapter_init`."""
        return self.init_lora_weights.startswith(HALVED)

    @property
    def held_rank(self) -> int:
        """Rank of the matrices in memory and in the file."""
        return 2 * self.r if self.halved else self.r

    @property
    def held_alpha(self) -> float:
        """The alpha that gives `held_rank` the scale of `r` and `alpha`."""
        return self.alpha * (math.sqrt(2) if self.use_rslora else 2) if self.halved else self.alpha


def _bounds(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


class TrainingSection(Section):
    """How the adapter learns."""

    epochs: float = setting(
        2, "Epochs", "Passes over the data; 2 or 3 is usual, more overfits", simple=True, gt=0, le=1000
    )
    max_steps: int | None = setting(
        None, "Step limit", "Stop after this many optimizer steps; empty means by epochs", ge=1
    )
    learning_rate: float = setting(
        2e-4,
        "Learning rate",
        "2e-4 is usual for LoRA, 5e-6 to 5e-5 for dpo and kto, 1e-5 for grpo; halve it if the loss jumps, "
        "small models bear more",
        simple=True,
        gt=0,
        le=0.1,
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = setting(
        "cosine",
        "Learning-rate scheduler",
        "How the learning rate falls; constant stays",
        heading="Learning rate",
        other_names=("schedule",),
    )
    min_lr_ratio: float = setting(
        0.0,
        "Lowest rate ratio",
        "What cosine and linear fall to, as a share of the learning rate; 0.1 keeps learning to the end",
        ge=0,
        le=1,
        other_names=("min_rate_share",),
    )
    warmup_ratio: float = setting(
        0.03,
        "Warmup ratio",
        "Part of the run in which the learning rate rises from 0 in equal parts: the first step takes one "
        "of them, the last step of the warmup all",
        ge=0,
        lt=1,
        other_names=("warmup_share",),
    )
    warmup_steps: int | None = setting(
        None, "Warmup steps", "The same in optimizer steps; where both are given, the steps count", ge=0
    )
    effective_batch: int = setting(
        16,
        "Effective batch",
        "Rows per optimizer step; more = steadier, slower steps",
        simple=True,
        ge=1,
        le=4096,
        other_names=("global_batch_size",),
    )
    micro_batch_tokens: int | None = setting(
        None,
        "Micro-batch tokens",
        "Tokens computed at once; less = less memory, same result; empty means the planner chooses",
        heading="Memory, speed and cost",
        ge=16,
        le=1_048_576,
    )
    max_length: int = setting(
        1024,
        "Max length",
        "Tokens per row; longer rows are cut and may lose their answer",
        simple=True,
        ge=16,
        le=1_048_576,
    )
    gradient_checkpointing: Literal["auto", "none", "selective", "full", "offload"] = setting(
        "auto",
        "Gradient checkpointing",
        "none keeps all activations: fastest; selective those of as many layers as fit; full recomputes "
        "all; offload too, and layer inputs wait in host memory: smallest; auto lets the planner choose",
    )
    engine: Literal["auto", "plumbline", "trl"] = setting(
        "auto", "Engine", "auto is Plumbline's own; trl, the reference, TRL's: slower, on one GPU"
    )
    price_per_hour: float | None = setting(
        None,
        "Price per hour",
        "What the machine costs, in any currency, for the cost that is forecast; changes nothing else",
        ge=0,
        le=1_000_000,
    )
    optimizer: Literal["auto", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = setting(
        "auto",
        "Optimizer",
        "auto takes the fastest that fits; 8-bit states need a quarter of the memory, paged ones may "
        "wait in host memory (CUDA only)",
        heading="Optimizer",
    )
    adam_beta1: float = setting(
        0.9, "Adam beta 1", "Memory of the mean gradient; higher = smoother steps, slower to turn", ge=0, lt=1
    )
    adam_beta2: float = setting(
        0.999, "Adam beta 2", "Memory of its size; 0.95 recovers sooner from spikes in short runs", ge=0, lt=1
    )
    adam_epsilon: float = setting(
        1e-8, "Adam epsilon", "Keeps the division by small gradients tame; rarely worth a change", gt=0, le=1
    )
    weight_decay: float = setting(0.0, "Weight decay", "Pull of the weights to zero", ge=0, le=1)
    max_grad_norm: float = setting(
        1.0, "Gradient clipping", "Longest gradient let through; tames loss spikes", gt=0, le=1000
    )
    neftune_alpha: float = setting(
        0.0,
        "NEFTune noise",
        "Noise on the embeddings (Jain et al., 2023): 5 frees answers on small data; leaves the fast path",
        heading="Regularisation",
        ge=0,
        le=1000,
    )
    label_smoothing: float = setting(
        0.0,
        "Label smoothing",
        "Share of each target spread over all tokens: less sure of itself; the held-out loss stays plain",
        ge=0,
        lt=1,
    )
    router_loss: float = setting(
        0.0,
        "Router loss",
        "Mixtures of experts: weight of a loss that spreads tokens over the experts; 0 leaves it out, 0.001 "
        "to 0.01 is usual where experts learn. Of each row alone, so slower; logged apart from the loss",
        methods=("sft", "pretraining"),
        ge=0,
        le=10,
    )
    seed: int = setting(
        0, "Seed", "Same seed, same run on the same machine", heading="Repeatable", ge=0, lt=2**31
    )
    deterministic: bool = setting(
        False,
        "Deterministic",
        "Only operations that give the same bits every time; on a GPU a few percent to twice as slow, on a "
        "CPU free",
    )
    logging_steps: int = setting(
        1,
        "Log every",
        "Optimizer steps between logged points",
        heading="Evaluation and checkpoints",
        ge=1,
    )
    eval_steps: int | None = setting(
        None, "Evaluate every", "Optimizer steps; empty means ten times over the run", ge=1
    )
    save_steps: int | None = setting(
        None, "Checkpoint every", "Optimizer steps; empty means five times over the run", ge=1
    )
    keep_checkpoints: int = setting(
        2, "Checkpoints kept", "Newest ones on disk; each holds adapter and optimizer", ge=1, le=100
    )
    load_best_model_at_end: bool = setting(
        False,
        "Load best model at end",
        "Write the adapter of the best evaluation, not of the last step; checkpoints then come with every "
        "evaluation",
        other_names=("best_at_end",),
    )
    best_metric: str = setting(
        "",
        "Best by",
        "Dataset of a mix whose held-out loss decides on best and early stopping; empty means all together",
        max_length=200,
    )
    early_stopping_patience: int | None = setting(
        None,
        "Early stopping patience",
        "End after this many evaluations in a row without improvement; 3 is usual, empty means never",
        ge=1,
        le=1000,
        other_names=("early_stopping",),
    )
    min_improvement: float = setting(
        0.0,
        "Least improvement",
        "Share by which the held-out loss must fall to count for early stopping; 0.01 is one percent",
        ge=0,
        lt=1,
    )

    @property
    def chooses(self) -> bool:
        """Whether held-out losses decide what the run ends with."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    @model_validator(mode="before")
    @classmethod
    def _from_earlier_versions(cls, value: Any) -> Any:
        """Recipes used to give rows in a micro-batch, which never changed a result, and a yes or no."""
        if not isinstance(value, dict):
            return value
        value = {name: given for name, given in value.items() if name != "micro_batch"}
        if isinstance(given := value.get("gradient_checkpointing"), bool):
            value["gradient_checkpointing"] = "full" if given else "none"
        return value
