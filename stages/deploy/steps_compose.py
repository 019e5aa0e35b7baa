"""The steps of a deployment on one host, for its README.md."""

from __future__ import annotations

from collections.abc import Sequence

from stages.deploy.container import Version
from stages.deploy.front_door import RUNTIME_SOCKET
from stages.deploy.options import DeployOptions

__all__ = ["compose_steps"]

_SOCKET = f"socat - UNIX-CONNECT:run/{RUNTIME_SOCKET}"


def compose_steps(versions: Sequence[Version], options: DeployOptions) -> list[str]:
    """How it is started, and how the candidate comes to traffic and back."""
    start = _start(versions[0].release.model, options)
    if len(versions) < 2:
        return [start, "One version only: render it again with `--candidate` for a rollout."]
    return [start, _roll_out(options)]


def _start(model: str, options: DeployOptions) -> str:
    return f"""\
## Start

1. Who starts it owns this folder and the sockets in `run/`; the front door runs as that user:
   `echo "DEPLOY_USER=$(id -u):$(id -g)" >> .env`
2. A password for Grafana: `echo "GRAFANA_PASSWORD=$(openssl rand -hex 16)" >> .env`
3. The certificate, its chain and its key, in one file: `private/front.pem`. To try it out, one that clients trust by
   `c.pem`:

   ```
   openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN={options.host} \\
     -addext subjectAltName=DNS:{options.host} -keyout k.pem -out c.pem
   cat c.pem k.pem > private/front.pem && chmod 600 private/front.pem && rm k.pem
   ```

4. API keys: {len(options.keys)} are known; without any, nobody gets in. A new one is made by `openssl rand -hex 32`,
   and its digest is a line of `keys.sha256`: `printf %s KEY | sha256sum | cut -d' ' -f1 >> keys.sha256`. The front door
   reads the file when it starts: later it takes `docker compose restart front-door`.
5. `docker compose up --detach`. Until a version's server has loaded the model, answers are 503. To wait for it:

   ```
   until curl --fail --silent --cacert c.pem --header "x-api-key: KEY" \\
     https://{options.host}:{options.port}/v2/health/ready; do sleep 1; done
   ```

Clients ask `https://{options.host}:{options.port}/v2/models/{model}/infer` with the header `x-api-key: KEY` or
`Authorization: Bearer KEY`. It is open for inference, readiness and health, over HTTP/1.1. Triton's settings,
statistics and metrics are not reachable from outside, nor is a version by its number, nor gRPC. Prometheus is at
127.0.0.1:9090, Grafana at 127.0.0.1:3000 (`PROMETHEUS_PORT` and `GRAFANA_PORT` in `.env` change that). Whoever may open
`run/` drives the deployment: keep it so.

`docker compose down` ends it: the front door first, which finishes what it was asked. What Prometheus and Grafana have
kept stays, unless one adds `--volumes`. `podman-compose` takes the same commands; Podman needs netavark and
aardvark-dns, by which the containers find each other."""


def _roll_out(options: DeployOptions) -> str:
    how = {
        "canary": """\
`optimize rollout .` raises the candidate's share step by step, compares latency and errors of both versions, and ends
with all of the traffic or none.""",
        "shadow": f"""\
`optimize rollout .` puts {options.mirror_percent} % of the requests (with bodies up to 45 kB) to both versions again,
and compares the answers. No client sees the candidate's, and no traffic is shifted. For larger requests:
`--data samples.npz`. When they agree, go on with `optimize rollout . --mode canary`, or promote.""",
        "blue-green": "Both versions run; the candidate has no traffic until it is promoted.",
    }[options.strategy]
    return f"""\
## Roll out

{how}

**Promote:** `optimize rollout . --mode promote`. By hand (with `socat`), in this order (never both at 0):

```
echo "set server triton/candidate weight 100" | {_SOCKET}
echo "set server triton/stable weight 0" | {_SOCKET}
echo "show servers state" | {_SOCKET} > run/servers.state
```

**Roll back:** `optimize rollout . --mode roll-back`. By hand:

```
echo "set server triton/stable weight 100" | {_SOCKET}
echo "set server triton/candidate weight 0" | {_SOCKET}
echo "show servers state" | {_SOCKET} > run/servers.state
```

`run/servers.state` keeps the weights over a restart of the front door. When the candidate has proved itself, render
again with it as the stable version."""
