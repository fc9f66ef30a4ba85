"""The reference path: the model and its decoding in batched torch with fake quantisation, apart from the executor.

`quantise` rounds, `schemes` keeps the KV cache, `model` is the transformer, `decode` the block diffusion, `metrics`
what is measured. Entries are `simulator`, the path `quality` of the command, and `perplexity`, the path of that name for causal
models. Only this package imports torch.
"""

from npu.errors import NotInstalledError

try:
    import torch  # noqa: F401  here for its error alone
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise NotInstalledError("accuracy.quality: torch is not installed; pip install 'tripath[study]'") from None

from accuracy.quality.simulator import QualityOutcome, simulate

__all__ = ["QualityOutcome", "simulate"]
