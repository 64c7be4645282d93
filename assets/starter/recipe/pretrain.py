"""Pre-train the starter from scratch: a byte-level BPE tokenizer and a small Llama-shaped model.

    python pretrain.py --corpus CORPUS --out OUT --epochs 16
    python pretrain.py --corpus CORPUS --out OUT --device cpu --hidden 64 --layers 2 ...

The folder that it writes is a complete model: weights in bf16, tokenizer and chat template. The
corpus is a folder of files that corpus.py describes. The learning rate follows the steps, or the
clock where `--minutes` would be over first, so only a run that keeps within its minutes can be
repeated.
"""

import argparse
import math
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from corpus import Text, held_out_documents, read_corpus
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = Path(__file__).parent.parent / "chat_template.jinja"
# Their places are their token ids, which the model's config repeats.
SPECIAL_TOKENS = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD, END_OF_TEXT, _, END_OF_TURN = range(len(SPECIAL_TOKENS))

CONTEXT = 1024
HEAD_DIM = 64
# Enough of every text for the tokenizer to see its words, without the largest ruling the merges.
TOKENIZER_DOCUMENTS_PER_TEXT = 4000
ENCODE_BATCH = 20_000
WARMUP_STEPS = 100
# The cosine ends at this share of the peak.
LAST_LEARNING_RATE = 0.02
REPORT_EVERY = 250
HELD_OUT_WINDOWS = 192

QUESTIONS = [
    "Hello! How are you?",
    "Tell me a story about a cat.",
    "I want to book a table for two.",
    "What is your favorite movie?",
    "What color is the sky?",
    "Who are you?",
    "Context:\nMia lives in Oslo. Tom has a green drum.\n\nQuestion: What color is Tom's drum?",
    "Make a list from this: Diego works as a baker.",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of texts and chats")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a smoke test")
    parser.add_argument("--tokenizer-only", action="store_true", help="stop before the model")
    # The model
    parser.add_argument("--hidden", type=int, default=320, help=f"a multiple of {HEAD_DIM}")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--intermediate", type=int, default=896)
    parser.add_argument("--vocabulary", type=int, default=4096)
    # Its training
    parser.add_argument("--sequence", type=int, default=512, help="tokens in a window")
    parser.add_argument("--batch", type=int, default=192, help="windows in a step")
    parser.add_argument("--learning-rate", type=float, default=2.5e-3, help="at its peak")
    parser.add_argument("--epochs", type=float, default=16)
    parser.add_argument("--minutes", type=float, default=6, help="stop by then, decayed in full")
    return parser.parse_args()


def train_tokenizer(texts: list[Text], rng: Random, vocabulary: int) -> PreTrainedTokenizerFast:
    """Learn the merges from a sample of every text; the chat template comes with the model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sample = []
    for text in texts:
        count = min(len(text.documents), TOKENIZER_DOCUMENTS_PER_TEXT)
        sample += rng.sample(text.documents, count)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sample, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        bos_token=SPECIAL_TOKENS[END_OF_TEXT],
        eos_token=SPECIAL_TOKENS[END_OF_TURN],
        model_max_length=CONTEXT,
    )
    wrapped.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return wrapped


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """All documents in one row of token ids, each after an <|endoftext|>."""
    ids: list[int] = []
    for start in range(0, len(documents), ENCODE_BATCH):
        batch = documents[start : start + ENCODE_BATCH]
        for encoding in tokenizer.backend_tokenizer.encode_batch(batch):
            ids.append(END_OF_TEXT)
            ids.extend(encoding.ids)
    # Through numpy: torch.tensor takes a second for every few million Python integers.
    return torch.from_numpy(np.array(ids, dtype=np.int64))


def build_model(arguments: argparse.Namespace, vocabulary: int) -> LlamaForCausalLM:
    heads = arguments.hidden // HEAD_DIM
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.intermediate,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=1 if heads % 2 else heads // 2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TURN,
    )
    return LlamaForCausalLM(config).to(arguments.device)


def build_optimizer(model: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Weight decay on matrices only: norms have nothing to gain from it."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_at(step: int, progress: float, peak: float) -> float:
    """Linear warm-up, then a cosine over `progress` from 0 to 1."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * warmup * (cosine * (1 - LAST_LEARNING_RATE) + LAST_LEARNING_RATE)


def windows(stream: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Rows of `length` tokens and the one after them, from each of the starts."""
    offsets = torch.arange(length + 1, device=stream.device)
    return stream[starts[:, None] + offsets]


def next_token_loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    logits = logits.float().reshape(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(logits, batch[:, 1:].reshape(-1))


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, stream: torch.Tensor, length: int) -> float:
    """Mean loss over the first windows of the held-out stream, nan where it fills none."""
    count = min((len(stream) - 1) // length, HELD_OUT_WINDOWS)
    if count < 1:
        return math.nan
    starts = torch.arange(count, device=stream.device) * length
    return next_token_loss(model, windows(stream, starts, length)).item()


def train(
    model: LlamaForCausalLM,
    stream: torch.Tensor,
    held_out: torch.Tensor,
    arguments: argparse.Namespace,
) -> None:
    """Train on windows from random places of the stream until the epochs or minutes are over."""
    length = arguments.sequence
    last_start = len(stream) - length - 1
    tokens_per_step = arguments.batch * length
    steps = int(arguments.epochs * len(stream) / tokens_per_step)
    if last_start < 1 or steps < 1:
        raise SystemExit(f"{len(stream)} tokens are too few for one step of {tokens_per_step}")
    optimizer = build_optimizer(model, arguments.learning_rate)
    # Compiling takes longer than a smoke test, so only where it pays.
    trained = torch.compile(model) if arguments.device == "cuda" else model
    began = time.time()
    for step in range(steps):
        minutes = (time.time() - began) / 60
        progress = max(step / steps, minutes / arguments.minutes)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, progress, arguments.learning_rate)
        starts = torch.randint(0, last_start, (arguments.batch,), device=stream.device)
        loss = next_token_loss(trained, windows(stream, starts, length))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        out_of_time = progress >= 1
        if step % REPORT_EVERY == 0 or out_of_time or step == steps - 1:
            seconds = time.time() - began
            print(
                f"step {step}/{steps} loss {loss.item():.3f} "
                f"held-out {held_out_loss(model, held_out, length):.3f} "
                f"tokens/s {(step + 1) * tokens_per_step / seconds:.0f} seconds {seconds:.0f}",
                flush=True,
            )
        if out_of_time:
            break


def print_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A first impression for whoever watches the run; nothing is measured."""
    model.eval()
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        output = model.generate(
            **prompt,
            max_new_tokens=80,
            do_sample=True,
            temperature=0.6,
            top_p=0.9,
            pad_token_id=PAD,
        )
        answer = output[0, prompt["input_ids"].shape[1] :]
        print(f"Q: {question}\nA: {tokenizer.decode(answer, skip_special_tokens=True)}", flush=True)


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    texts = read_corpus(arguments.corpus)
    for text in texts:
        print(f"{text.name}: {len(text.documents)} documents, {sum(map(len, text.documents))} chars")

    rng = Random(0)
    tokenizer = train_tokenizer(texts, rng, arguments.vocabulary)
    tokenizer.save_pretrained(arguments.out)
    held_out = held_out_documents(texts)
    documents = [item for text in texts for item in text.documents if item not in held_out]
    rng.shuffle(documents)
    # Sorted because the order of a set changes from one process to the next.
    held_out_stream = token_stream(tokenizer, sorted(held_out))
    stream = token_stream(tokenizer, documents)
    print(f"{len(stream)} tokens to learn from, {len(held_out_stream)} held out", flush=True)
    if arguments.tokenizer_only:
        return

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = build_model(arguments, len(tokenizer))
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters")
    device = arguments.device
    train(model, stream.to(device), held_out_stream.to(device), arguments)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    print_answers(model, tokenizer)


if __name__ == "__main__":
    main()
