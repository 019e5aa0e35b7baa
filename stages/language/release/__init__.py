"""From a checkpoint to a release that vLLM, TGI, TensorRT-LLM and Triton's vLLM backend load; the proof that vLLM does.

`package` is the stage that puts it together, `launch` the files that start a server (`servers` their arguments,
`manifests` their containers), `lora` the adapters beside it; `verify` is the stage that has the real `vllm` answer.
"""

from stages.language.release.package import (
    PACKAGE_LANGUAGE,
    EngineOptions,
    PackageLanguageOptions,
    package_language,
)
from stages.language.release.verify import VERIFY_LANGUAGE, VerifyLanguageOptions, verify_language

__all__ = [
    "PACKAGE_LANGUAGE", "VERIFY_LANGUAGE", "EngineOptions", "PackageLanguageOptions", "VerifyLanguageOptions",
    "package_language", "verify_language",
]  # fmt: skip
