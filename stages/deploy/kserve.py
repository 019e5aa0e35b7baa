"""KServe's InferenceService: one object, whose revisions are the versions."""

from __future__ import annotations

from typing import Any

from stages.deploy.container import Version
from stages.deploy.options import DeployOptions
from stages.language.release.manifests import dns_name

__all__ = ["inference_service"]


def inference_service(
    version: Version, options: DeployOptions, canary_percent: int | None, *, revisions: bool
) -> dict[str, Any]:
    """An InferenceService of one version. `canary_percent`: its share beside the revision before it (None: all of it).

    `runtimeVersion` is always said: KServe's own Triton runtime is years older than what models are made for. Shares
    exist only where Knative keeps `revisions`, and that is not KServe's default any more.
    """
    release = version.release
    gpus = {"nvidia.com/gpu": release.gpus} if release.gpus else {}
    memory = f"{release.memory_bytes // (1024 * 1024)}Mi"
    predictor: dict[str, Any] = {
        "minReplicas": options.replicas,
        "maxReplicas": options.max_replicas,
        "timeout": options.answer_s,
        **({} if canary_percent is None else {"canaryTrafficPercent": canary_percent}),
        "model": {
            "modelFormat": {"name": "triton"},
            "protocolVersion": "v2",
            "runtime": "kserve-tritonserver",
            "runtimeVersion": options.runtime_version,
            "storageUri": f"oci://{version.image}",
            "resources": {
                "requests": {"cpu": str(options.cpus), "memory": memory},
                "limits": {"cpu": str(options.cpus), "memory": memory, **gpus},
            },
        },
    }
    name = dns_name(release.model)
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": name},
            "annotations": {
                "serving.kserve.io/deploymentMode": "Knative" if revisions else "Standard",
                "optimize.model/version": str(release.version),
            },
        },
        "spec": {"predictor": predictor},
    }
