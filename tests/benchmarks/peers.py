"""How quick other ways to train are: python -m tests.benchmarks.peers --peer usual --model FOLDER ...

One peer a process, so that nothing of one is left in the memory of the next. It trains QLoRA adapters on
random weights of real dimensions (speed does not depend on the values) and prints one line, `RESULT {json}`.
First make the weights: `--make --dims 3b --model FOLDER`. The peers:

usual    TRL's SFTTrainer on padded batches of two with gradient checkpointing and a paged 8-bit AdamW
packed   TRL's own packing (best fit, decreasing) into rows of `--length` tokens, torch's SDPA
unsloth  Unsloth's FastLanguageModel and its trainer, packed the same way
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

# Before torch and transformers are imported, which is why every import of those is inside a function.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

DIMS: dict[str, dict[str, Any]] = {
    "tiny": dict(vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
                 num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True),
    "0.5b": dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                 num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True),
    "3b": dict(vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
               num_attention_heads=24, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True),
    "7b": dict(vocab_size=50304, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=32, tie_word_embeddings=False),
}  # fmt: skip
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = dict(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS, bias="none")
BATCH = {"usual": 2, "packed": 8, "unsloth": 8}
OPTIMIZER = {"usual": "paged_adamw_8bit", "packed": "adamw_torch_fused", "unsloth": "adamw_8bit"}
MOST_ROWS = 1 << 16
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "unsloth", "xformers")


def make_checkpoint(dims: str, folder: Path) -> None:
    """Random Llama weights of these dimensions and a tokenizer, saved in bfloat16."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the quick brown fox"], trainer)

    config = LlamaConfig(
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0, **DIMS[dims]
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def row_lengths(kind: str, length: int) -> Any:
    """More lengths than a run needs: `instruction` log-normal, mostly a few hundred, or `full`."""
    import numpy as np

    if kind == "full":
        return np.full(MOST_ROWS, length)
    drawn = np.random.default_rng(0).normal(5.3, 0.8, MOST_ROWS)
    return np.clip(np.exp(drawn).astype(int), 16, length)


def make_rows(lengths: Any, vocabulary: int) -> Any:
    """A dataset of random rows of these lengths; every token is supervised."""
    import numpy as np
    from datasets import Dataset

    generator = np.random.default_rng(0)
    rows = [generator.integers(3, min(vocabulary, 50000), length).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": rows})


def load_transformers(arguments: argparse.Namespace) -> tuple[Any, Any, Any, str]:
    """Model in NF4, tokenizer, adapter settings for the trainer, and what computes attention."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    nf4: dict[str, Any] = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **nf4
        ),
        dtype=torch.bfloat16,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        attn_implementation="sdpa",
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    return model, tokenizer, LoraConfig(task_type="CAUSAL_LM", **LORA), model.config._attn_implementation


def load_unsloth(arguments: argparse.Namespace) -> tuple[Any, Any, None, str]:
    """The same from Unsloth, which quantizes in its own way (NF4, double) and adds the adapters itself."""
    import torch
    from unsloth import FastLanguageModel
    from unsloth.models import _utils

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            how = dict(load_in_4bit=True, dtype=torch.bfloat16, local_files_only=True)
            model, tokenizer = FastLanguageModel.from_pretrained(
                arguments.model, max_seq_length=arguments.length, **how
            )
    finally:
        print(printed.getvalue(), flush=True)
    checkpointing = "unsloth" if arguments.checkpointing == "on" else False
    model = FastLanguageModel.get_peft_model(
        model, use_gradient_checkpointing=checkpointing, random_state=0, **LORA
    )
    found = re.search(r"FA \[(.*?)\]", printed.getvalue())  # not a fair run where both are missing
    if found:
        return model, tokenizer, None, found[1]
    return model, tokenizer, None, f"Xformers = {_utils.xformers_version}. FA2 = {_utils.HAS_FLASH_ATTENTION}"


class Counted:
    """A collator that also counts the tokens that pass through it, padding apart."""

    def __init__(self, collator: Any) -> None:
        self.collator, self.real, self.all = collator, 0, 0

    def __call__(self, rows: Any) -> Any:
        batch = self.collator(rows)
        tokens = batch["input_ids"].numel()
        self.all += tokens
        self.real += int(batch["attention_mask"].sum()) if "attention_mask" in batch else tokens
        return batch


def train(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Load, train in `folder`, and measure the steps after the warm-up."""
    if arguments.peer == "unsloth":
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", folder + "/unsloth_compiled_cache")
        import unsloth  # noqa: F401  it patches the libraries imported below
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    packing = arguments.peer != "usual"
    load = load_unsloth if arguments.peer == "unsloth" else load_transformers
    model, tokenizer, adapters, attention = load(arguments)

    lengths = row_lengths(arguments.rows, arguments.length)
    batch_rows = arguments.batch * (arguments.length / lengths.mean() if packing else 1)
    accumulation = max(1, round(arguments.examples / batch_rows))
    steps = arguments.warm_up + arguments.steps
    count = round(batch_rows * accumulation * (steps + 1))  # one step more, for no step is a partial one
    rows = make_rows(lengths[:count], DIMS[arguments.dims]["vocab_size"])

    checkpointing = arguments.checkpointing == "on" and arguments.peer != "unsloth"  # that one does it itself
    config = SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=arguments.batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        optim=arguments.optimizer,
        bf16=True,
        max_length=arguments.length,
        packing=packing,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        dataloader_pin_memory=cuda,
        use_cpu=not cuda,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=rows, peft_config=adapters, args=config
    )
    trainer.data_collator = counted = Counted(trainer.data_collator)
    marks: list[tuple[float, int, int]] = []

    class Clock(TrainerCallback):
        """Notes the time and the tokens so far when a step's work has ended."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            marks.append((time.perf_counter(), counted.real, counted.all))
            if cuda and state.global_step == arguments.warm_up:
                torch.cuda.reset_peak_memory_stats()

    trainer.add_callback(Clock())
    trainer.train()

    (began, real_before, all_before), (ended, real_after, all_after) = marks[arguments.warm_up - 1], marks[-1]
    real = real_after - real_before
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_second": round(real / (ended - began)),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        "attention": attention,
        "packing": trainer.args.packing,
        "accumulation": accumulation,
        "tokens_per_step": round(real / arguments.steps),
        "padding": round(1 - real / (all_after - all_before), 3),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def versions() -> dict[str, str]:
    """The versions of the libraries at work, of those that are installed."""
    installed = {found.name.lower(): found.version for found in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def read_arguments() -> argparse.Namespace:
    """The command line, defaults filled in for the peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", choices=list(BATCH), default="usual")
    parser.add_argument("--dims", choices=list(DIMS), default="3b")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="the checkpoint")
    parser.add_argument("--make", action="store_true", help="make the checkpoint in FOLDER, train nothing")
    parser.add_argument("--rows", choices=["instruction", "full"], default="instruction")
    parser.add_argument("--length", type=int, default=2048, help="tokens in the longest row")
    parser.add_argument("--examples", type=int, default=64, help="rows in an optimizer step")
    parser.add_argument("--batch", type=int, help="rows (packed ones, where packed) in a forward pass")
    parser.add_argument("--checkpointing", choices=["on", "off"], default="on")
    parser.add_argument("--optimizer", help="as transformers names it")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps measured")
    parser.add_argument("--warm-up", type=int, default=3, help="optimizer steps before those")
    arguments = parser.parse_args()
    arguments.batch = arguments.batch or BATCH[arguments.peer]
    arguments.optimizer = arguments.optimizer or OPTIMIZER[arguments.peer]
    if arguments.warm_up < 1 or arguments.steps < 1:
        parser.error("--warm-up and --steps are at least 1")
    return arguments


def main() -> None:
    arguments = read_arguments()
    if arguments.make:
        make_checkpoint(arguments.dims, Path(arguments.model))
        return
    settings = ("peer", "dims", "rows", "length", "batch", "checkpointing", "optimizer", "steps")
    result = {name: getattr(arguments, name) for name in settings}
    with tempfile.TemporaryDirectory() as folder:
        result.update(train(arguments, folder), versions=versions())
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
