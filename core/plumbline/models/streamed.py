"""A 4-bit base read layer by layer, so that no more of it than one layer is ever held in 16 bits.

The model is the one that `plumbline.models.load.base_model` gives, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.hub.progress import Progress, Report
from plumbline.models import hardware, headers, load
from plumbline.models.inspect import Inspected


def base_model(
    config: RunConfig,
    device: Any,
    report: Report | None = None,
    check_stop: Callable[[], None] | None = None,
) -> tuple[Any, Iterator[Any]]:
    """The frozen base, still without its decoder's layers, and those: each is read when it is asked for.

    :param config: with a quantisation to 4 bits, and a base whose layers are all that is quantised
    :param report: told what has been downloaded, then read, as a text and a share
    :raises StudioError: when it cannot be found, downloaded or read
    """
    files = load.fetched(config, report, check_stop)
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    base, revision = config.model.base, config.model.revision
    dtype = getattr(torch, hardware.compute_dtype(config).value)
    model = load.skeleton(base, revision, dtype)
    with load.explained(base):
        model.config.quantization_config = load.quantisation(config, files, dtype)
        quantizer: Any = AutoHfQuantizer.from_config(model.config.quantization_config, pre_quantized=False)
        quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": device})
        reader = _Reader(model, quantizer, files, device, dtype, report, check_stop)
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        decoder = model.get_decoder()
        inside = {id(parameter) for parameter in decoder.layers.parameters()}
        others = [name for name in names if id(model.get_parameter(name)) not in inside]
        reader.read(name for name in others if name in reader.places)
        model.tie_weights(
            missing_keys={name for name in others if name not in reader.places}, recompute_mapping=False
        )
        # No file has its frequencies, and the meta device has only their shape.
        decoder.rotary_emb = type(decoder.rotary_emb)(config=decoder.config).to(device)
        model.generation_config = _generation_config(files.folder)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)
    return load.frozen(model.eval(), config), _layers(base, model, reader)


def _layers(base: str, model: Any, reader: "_Reader") -> Iterator[Any]:
    layers = model.get_decoder().layers
    (prefix,) = (name for name, module in model.named_modules() if module is layers)
    for number, layer in enumerate(layers):
        with load.explained(base):
            reader.read(f"{prefix}.{number}.{name}" for name, _ in layer.named_parameters())
        yield layer


def _generation_config(folder: Path) -> Any:
    """A model's settings for answers; where it has none of its own, what its config says of them."""
    from transformers import GenerationConfig

    if (folder / load.GENERATION).exists():
        return GenerationConfig.from_pretrained(str(folder))
    return GenerationConfig.from_pretrained(
        str(folder), config_file_name="config.json", _from_model_config=True
    )


class _Reader:
    """Puts tensors of a model's files in the place of parameters on the meta device.

    :param places: the file of each parameter, and its name there, by the model's name
    """

    def __init__(
        self,
        model: Any,
        quantizer: Any,
        model_files: Inspected,
        device: Any,
        dtype: Any,
        report: Report | None,
        check_stop: Callable[[], None] | None,
    ) -> None:
        self.model, self.quantizer, self.device, self.dtype = model, quantizer, device, dtype
        rename, _ = headers.renaming(model)
        files = [model_files.folder / name for name in model_files.weights]
        self.places = {
            rename(name)[0]: (file, name) for file in files for name in headers.of_file(file, "model.base")
        }
        self.progress = Progress(sum(file.stat().st_size for file in files), report, check_stop)

    def read(self, names: Iterable[str]) -> None:
        from safetensors import safe_open

        of_files: dict[Path, list[str]] = {}
        for name in names:
            of_files.setdefault(self.places[name][0], []).append(name)
        for file, names_in_file in of_files.items():
            with safe_open(file, framework="pt") as tensors:
                for name in names_in_file:
                    tensor = tensors.get_tensor(self.places[name][1])
                    # A copy also on the host: what is kept must not keep all of its file in memory.
                    self._place(name, tensor.to(self.device, self.dtype, copy=True))
                    self.progress.reached(self.progress.done + tensor.nbytes, "reading the base")

    def _place(self, name: str, value: Any) -> None:
        import torch

        if self.quantizer.param_needs_quantization(self.model, name):
            parameter = self.quantizer.get_quantize_ops().convert({name: value}, name, self.model)[name]
        else:
            parameter = torch.nn.Parameter(value, requires_grad=False)
        owner, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(owner), last, parameter)
