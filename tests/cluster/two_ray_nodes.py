"""Submit workers to a running Ray cluster of two nodes on this machine; a line on stdin kills the second node.

python -m tests.cluster.two_ray_nodes WORDS    those of scripts/submit.py ray
"""

import subprocess
import sys

import ray
from ray.cluster_utils import Cluster

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    second = cluster.add_node(num_cpus=1, num_gpus=0)
    cluster.wait_for_nodes()
    submit = [sys.executable, "scripts/submit.py", "ray", f"cluster.address={cluster.address}"]
    with subprocess.Popen([*submit, *sys.argv[1:]]) as launcher:
        sys.stdin.readline()
        cluster.remove_node(second, allow_graceful=False)
        launcher.wait()
    ray.init(cluster.address, logging_level="error")
    alive = sum(node["Alive"] for node in ray.nodes())
    print(f"{alive} node is alive" if alive == 1 else f"{alive} nodes are alive", flush=True)
    ray.shutdown()
    cluster.shutdown()
    sys.exit(launcher.returncode)
