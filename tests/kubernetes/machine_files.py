"""The files of each node: what Kubernetes' processes, containerd and the pods' network are told."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.kubernetes.binaries import PAUSE_IMAGE
from tests.kubernetes.certificates import Authority

SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_API = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"
POD_NETWORK = "10.244.0.0/16"
API_PORT = 6443
DOMAIN = "cluster.local"
CONTROL_TAINT = "node-role.kubernetes.io/control-plane"
_TOKEN_FOLDER = "/etc/kubernetes/serviceaccount"
_PKI = "/etc/kubernetes/pki"


@dataclass(frozen=True)
class Node:
    """One node: a container of this machine. The first one is the control plane."""

    name: str
    address: str
    number: int
    zone: str

    @property
    def pods(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def control(self) -> bool:
        return self.number == 0


class Files:
    """Everything that the nodes of one cluster are told; made once, in memory."""

    def __init__(
        self, nodes: tuple[Node, ...], registry: str, registry_inside: str, ports: range
    ) -> None:
        self._nodes = nodes
        self._control = nodes[0]
        self._api = f"{self._control.address}:{API_PORT}"
        # By the name that the machine pushes to, and where the nodes find it.
        self._registry, self._registry_inside = registry, registry_inside
        self._ports = ports
        self._token = secrets.token_hex(16)
        self.authority = Authority()
        self.admin = self.authority.issue("elsapg-test-admin", "system:masters")

    def of(self, node: Node) -> dict[str, str]:
        """Absolute path -> content."""
        files = self._common(node)
        if node.control:
            files |= self._control_plane()
        return files

    def _common(self, node: Node) -> dict[str, str]:
        user = self.authority.issue(f"system:node:{node.name}", "system:nodes")
        proxy = self.authority.issue("system:kube-proxy")
        server = self.authority.issue(node.name, hosts=(node.name, node.address))
        return {
            "/etc/kubernetes/node.env": self._environment(node),
            "/etc/kubernetes/admin.conf": self.authority.kubeconfig(self._api, self.admin),
            "/etc/kubernetes/kubelet.conf": self.authority.kubeconfig(self._api, user),
            "/etc/kubernetes/kubelet.yaml": _kubelet(node),
            "/etc/kubernetes/kube-proxy.conf": self.authority.kubeconfig(self._api, proxy),
            "/etc/kubernetes/kube-proxy.yaml": _KUBE_PROXY,
            # For pods that want no cluster DNS: none is better than one of the machine's.
            "/etc/kubernetes/resolv.conf": "nameserver 127.0.0.1\n",
            f"{_PKI}/ca.crt": self.authority.certificate,
            f"{_PKI}/kubelet.crt": server.certificate,
            f"{_PKI}/kubelet.key": server.key,
            f"{_TOKEN_FOLDER}/token": self._token,
            f"{_TOKEN_FOLDER}/ca.crt": self.authority.certificate,
            "/etc/containerd/config.toml": _CONTAINERD,
            f"/etc/containerd/certs.d/{self._registry}/hosts.toml": (
                f'[host."http://{self._registry_inside}"]\n  capabilities = ["pull", "resolve"]\n'
            ),
            "/etc/cni/net.d/10-pods.conflist": _pod_network(node),
        }

    def _environment(self, node: Node) -> str:
        labels = f"topology.kubernetes.io/zone={node.zone},topology.kubernetes.io/region=here"
        routes = "\n".join(f"{n.pods} {n.address}" for n in self._nodes if n != node)
        return (
            f"NODE_NAME={node.name}\nNODE_IP={node.address}\nPODS={node.pods}\nAPI={self._api}\n"
            f"LABELS={labels}\nROUTES='{routes}'\n"
        )

    def _control_plane(self) -> dict[str, str]:
        server = self.authority.issue(
            "kube-apiserver",
            hosts=(
                "localhost", "127.0.0.1", self._control.address, self._control.name, SERVICE_API,
                "kubernetes", "kubernetes.default", "kubernetes.default.svc",
                f"kubernetes.default.svc.{DOMAIN}",
            ),
        )  # fmt: skip
        to_kubelets = self.authority.issue("kube-apiserver", "system:masters")
        signer = rsa.generate_private_key(65537, 2048)
        apiserver = {
            "advertise-address": self._control.address,
            "allow-privileged": "true",
            "authorization-mode": "Node,RBAC",
            "client-ca-file": f"{_PKI}/ca.crt",
            "enable-admission-plugins": "NodeRestriction",
            "etcd-servers": "http://127.0.0.1:2379",
            "kubelet-certificate-authority": f"{_PKI}/ca.crt",
            "kubelet-client-certificate": f"{_PKI}/to-kubelets.crt",
            "kubelet-client-key": f"{_PKI}/to-kubelets.key",
            "kubelet-preferred-address-types": "InternalIP",
            "secure-port": str(API_PORT),
            "service-account-issuer": f"https://kubernetes.default.svc.{DOMAIN}",
            "service-account-key-file": f"{_PKI}/signer.pub",
            "service-account-signing-key-file": f"{_PKI}/signer.key",
            "service-cluster-ip-range": SERVICE_NETWORK,
            "service-node-port-range": f"{self._ports.start}-{self._ports.stop - 1}",
            "tls-cert-file": f"{_PKI}/apiserver.crt",
            "tls-private-key-file": f"{_PKI}/apiserver.key",
            "token-auth-file": f"{_PKI}/tokens.csv",
        }
        manager = {
            "kubeconfig": "/etc/kubernetes/admin.conf",
            "leader-elect": "false",
            "root-ca-file": f"{_PKI}/ca.crt",
            "service-account-private-key-file": f"{_PKI}/signer.key",
            "use-service-account-credentials": "true",
        }
        return {
            "/etc/kubernetes/apiserver.args": _arguments(apiserver),
            "/etc/kubernetes/controller-manager.args": _arguments(manager),
            f"{_PKI}/apiserver.crt": server.certificate,
            f"{_PKI}/apiserver.key": server.key,
            f"{_PKI}/to-kubelets.crt": to_kubelets.certificate,
            f"{_PKI}/to-kubelets.key": to_kubelets.key,
            f"{_PKI}/signer.key": signer.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode(),
            f"{_PKI}/signer.pub": signer.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode(),
            f"{_PKI}/tokens.csv": (
                f'{self._token},network-policies,network-policies,"system:masters"\n'
            ),
        }


def _arguments(flags: dict[str, str]) -> str:
    return "".join(f"--{name}={value}\n" for name, value in sorted(flags.items()))


def _kubelet(node: Node) -> str:
    document = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{_PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": DOMAIN,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failCgroupV1": False,
        "failSwapOn": False,
        # The machine's disk is shared, and how full it is says nothing about this node.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # Below 0 needs a capability that not every machine has.
        "oomScoreAdj": 0,
        "registerWithTaints": (
            [{"key": CONTROL_TAINT, "effect": "NoSchedule"}] if node.control else []
        ),
        "resolvConf": "/etc/kubernetes/resolv.conf",
        # So often it brings changed files to its pods; by default once a minute, and tests wait.
        "syncFrequency": "5s",
        "tlsCertFile": f"{_PKI}/kubelet.crt",
        "tlsPrivateKeyFile": f"{_PKI}/kubelet.key",
    }
    return yaml.safe_dump(document)


def _pod_network(node: Node) -> str:
    # Routed, not bridged: every packet between pods passes the node's packet filter.
    document = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": node.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    return json.dumps(document, indent=2)


_KUBE_PROXY = yaml.safe_dump(
    {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_NETWORK,
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.conf"},
        # Those are the machine's, not the node's.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "oomScoreAdj": 0,
    }
)

_CONTAINERD = f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
