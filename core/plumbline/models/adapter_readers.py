"""What other programs refuse of an adapter, said before somebody finds out with them.

vLLM: vllm/lora/peft_helper.py and vllm/config/lora.py; llama.cpp: convert_lora_to_gguf.py, which writes
alpha down and divides it by the rank when the adapter is used. A merged model has none of these limits.
"""

from typing import Any

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be
VLLM_RANK = 16  # what it is when it is not given


def refusals(adapter_config: dict[str, Any]) -> list[str]:
    """Sentences, each with what helps; none when both programs read the adapter as it is.

    :param adapter_config: the adapter's adapter_config.json
    """
    parts = {
        "DoRA": adapter_config.get("use_dora"),
        "modules saved whole": adapter_config.get("modules_to_save"),
        "trained biases": adapter_config.get("bias", "none") != "none",
    }
    unread = " and ".join(name for name, there in parts.items() if there)
    sentences = []
    if unread:
        sentences.append(
            f"vLLM and llama.cpp refuse it: they read no {unread}. Merge it into the base instead."
        )
    rank = max([adapter_config.get("r", 8), *(adapter_config.get("rank_pattern") or {}).values()])
    if rank > VLLM_RANKS[-1]:
        sentences.append(f"vLLM refuses it: its rank is {rank}, and {VLLM_RANKS[-1]} is the most. Merge it.")
    elif rank > VLLM_RANK and not unread:
        least = min(limit for limit in VLLM_RANKS if limit >= rank)
        sentences.append(
            f"vLLM refuses it unless it is started with --max-lora-rank {least}: its rank is {rank}, "
            f"the default is {VLLM_RANK}."
        )
    if adapter_config.get("rank_pattern") or adapter_config.get("alpha_pattern"):
        sentences.append(
            "vLLM and llama.cpp scale it wrongly: layers differ in rank or alpha. Merge it instead."
        )
    elif adapter_config.get("use_rslora") and not unread:
        sentences.append("llama.cpp scales it wrongly: it does not know rsLoRA. Merge it instead.")
    return sentences


def section(adapter_config: dict[str, Any]) -> str:
    """The part of a model card that says so; empty when there is nothing to say."""
    lines = "".join(f"- {sentence}\n" for sentence in refusals(adapter_config))
    return f"\n## Where it does not load as it is\n\n{lines}" if lines else ""
