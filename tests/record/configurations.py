"""The configurations whose programs, cycles, counts, tokens and bits a rebuild must leave as they were."""

GENERATION = "workload.generation_length=16"
STEPS = "workload.steps=16"
SHORT = (GENERATION, STEPS)
LARGE = ("hardware=npu_datacenter", "workload=llada_gsm8k", "workload.prompt_length=64", "workload.generation_length=64",
         "workload.steps=8")  # fmt: skip
TIMED = "paths=[analytical,cycle]"
SCHEMES = (
    "baos", "baos_centred", "baos_half", "baos_k", "baos_pow2", "baos_v", "baos_v_pow2", "frozen", "hadamard", "k_tokens",
    "kivi", "plain", "prerope", "prerope_baos", "static", "v_channels", "v_channels_baos",
)  # fmt: skip
NUMERICS = (
    "bf16", "fp16", "mxfp4", "mxfp6", "mxfp8", "mxfp8_e5m2", "mxint4", "mxint4_baos", "mxint4_kv", "mxint8",
)  # fmt: skip
CACHES = ("none", "prefix", "dual")
COMMITS = ("quota", "threshold")


def configurations() -> dict[str, tuple[str, ...]]:
    """Overrides of the default configuration, by name."""
    found: dict[str, tuple[str, ...]] = {"default": ()}
    for cache in CACHES:
        for commit in COMMITS:
            policy = f"workload.cache={cache}", f"workload.commit={commit}"
            found[f"{cache}-{commit}"] = (*SHORT, *policy)
            found[f"{cache}-{commit}-baos"] = (*SHORT, *policy, "numerics=mxint4_baos")
            found[f"{cache}-{commit}-llada_8b"] = ("model=llada_8b", "numerics=mxint4", *LARGE, *policy, TIMED)
            found[f"{cache}-{commit}-dream_7b"] = ("model=dream_7b", "numerics=mxint4", *LARGE, *policy, TIMED)
    for scheme in SCHEMES:
        found[f"scheme-{scheme}"] = (*SHORT, "numerics=mxint4_kv", f"scheme={scheme}")
        if scheme != "static":  # needs a calibrated checkpoint
            found[f"scheme-{scheme}-llada_8b"] = (
                "model=llada_8b",
                "numerics=mxint4",
                *LARGE,
                f"scheme={scheme}",
                TIMED,
            )
    for numerics in NUMERICS:
        found[f"numerics-{numerics}"] = (*SHORT, f"numerics={numerics}")
    for batch in (2, 3, 8):
        for cache in CACHES:
            found[f"batch-{batch}-{cache}"] = (*SHORT, f"workload.batch={batch}", f"workload.cache={cache}")
    for batch in (4, 16):
        found[f"batch-{batch}-llada_8b"] = (
            "model=llada_8b",
            "numerics=mxint4",
            *LARGE,
            f"workload.batch={batch}",
            TIMED,
        )
    for execution in ("serial", "decoupled"):
        for scheme in ("plain", "baos"):
            found[f"{execution}-{scheme}"] = (*SHORT, f"hardware.execution={execution}", f"scheme={scheme}")
    for hardware in ("npu_plena", "npu_small", "rtl_small"):
        found[f"hardware-{hardware}"] = (*SHORT, f"hardware={hardware}", "numerics=mxint8")
        found[f"hardware-{hardware}-mxint4"] = (*SHORT, f"hardware={hardware}", "numerics=mxint4")
    found["hardware-npu_datacenter"] = ("model=llada_8b", "numerics=mxint4", *LARGE[:2], TIMED)
    found["hardware-npu_v1"] = ("model=llada_8b", "hardware=npu_v1", "numerics=mxfp8", "workload=paper_sampling", TIMED)
    found["sampling-small"] = ("workload.stage=sampling", "workload.generation_length=8", "workload.steps=1",
                               "workload.prompt_length=8", TIMED)  # fmt: skip
    for name, change in {
        "blen-4": "hardware.blen=4", "vlen-128": "hardware.vlen=128", "block-4": "workload.block_length=4",
        "block-16": "workload.block_length=16", "block-size-16": "numerics.block_size=16",
        "prompt-21": "workload.prompt_length=21", "small-sram": "hardware.sram.vector_bytes=65536",
        "simple-hbm": "hardware.hbm.model=simple", "channels-2": "hardware.hbm.channels=2",
    }.items():  # fmt: skip
        found[name] = (*SHORT, change)
    found["many-chunks-prefix"] = (
        *SHORT,
        "hardware.sram.vector_bytes=65536",
        "workload.cache=prefix",
        "workload.batch=2",
    )
    found["steps-4"] = (GENERATION, "workload.steps=4")
    found["prompt-512-llada_8b"] = ("model=llada_8b", "numerics=mxint4", *LARGE[:2], "workload.prompt_length=512",
                                    "workload.generation_length=64", "workload.steps=8", TIMED)  # fmt: skip
    return found
