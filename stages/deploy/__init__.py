"""From a release to manifests: Compose with a front door, Kubernetes, KServe, Argo Rollouts, Traefik."""
