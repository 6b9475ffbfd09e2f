#!/bin/bash
# A Kubernetes node's processes, each started again when it ends. Its files come from
# tests/kubernetes/machine_files.py; NODE_NAME, NODE_IP, PODS, API (host:port) and ROUTES
# ("network gateway" lines) from /etc/kubernetes/node.env; the binaries lie in /opt/kubernetes/bin.
set -u
# shellcheck source=/dev/null
source /etc/kubernetes/node.env
PATH=/opt/kubernetes/bin:/usr/sbin:/usr/bin:/sbin:/bin
logs=/var/log/kubernetes
mkdir -p "$logs"

keep() { # NAME COMMAND...
  local name=$1
  shift
  (while :; do
    "$@" >>"$logs/$name.log" 2>&1
    echo "--- ended with $?" >>"$logs/$name.log"
    sleep 0.5
  done) &
}

# The machine's settings are not ours to change: the kubelet finds what it wants, and writes none.
pretend() { # PATH VALUE
  local file=/run/sysctl/${1//\//_}
  mkdir -p /run/sysctl
  echo "$2" >"$file"
  mount --bind "$file" "/proc/sys/$1"
}
pretend vm/overcommit_memory 1
pretend vm/panic_on_oom 0
pretend kernel/panic 10
pretend kernel/panic_on_oops 1
pretend kernel/keys/root_maxkeys 1000000
pretend kernel/keys/root_maxbytes 25000000

# What a privileged container would have; see cluster.py for why it is none.
mount -o remount,rw /sys
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then # version 2: one tree, whose root must be empty
  mount -o remount,bind,rw /sys/fs/cgroup
  mkdir -p /sys/fs/cgroup/node
  while read -r process; do
    echo "$process" >/sys/fs/cgroup/node/cgroup.procs
  done </sys/fs/cgroup/cgroup.procs 2>/dev/null
else
  for folder in /sys/fs/cgroup/*/; do mount -o remount,bind,rw "$folder"; done
fi
mount --make-rshared /
[ -e /dev/kmsg ] || mknod /dev/kmsg c 1 11
echo 1 >/proc/sys/net/ipv4/ip_forward

while read -r network gateway; do
  [ -z "$network" ] || ip route replace "$network" via "$gateway"
done <<<"$ROUTES"

if [ -f /etc/kubernetes/apiserver.args ]; then
  # No data outlives the cluster, so nothing is gained by waiting for the disk.
  keep etcd etcd --data-dir /var/lib/etcd --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  mapfile -t arguments </etc/kubernetes/apiserver.args
  keep apiserver kube-apiserver "${arguments[@]}"
  mapfile -t arguments </etc/kubernetes/controller-manager.args
  keep controller-manager kube-controller-manager "${arguments[@]}"
  keep scheduler kube-scheduler --kubeconfig /etc/kubernetes/admin.conf --leader-elect=false
fi

keep containerd containerd
for image in /opt/kubernetes/images/*/image.tar; do
  until ctr --namespace k8s.io images import "$image" >>"$logs/images.log" 2>&1; do sleep 0.1; done
done
until curl -skf -o /dev/null --max-time 2 "https://$API/readyz"; do sleep 0.2; done

keep kubelet kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig /etc/kubernetes/kubelet.conf \
  --hostname-override "$NODE_NAME" --node-ip "$NODE_IP" --node-labels "$LABELS"
keep kube-proxy kube-proxy --config /etc/kubernetes/kube-proxy.yaml --hostname-override "$NODE_NAME"
# First packets of the pods' connections go to network-policies, which lets them through or not. It
# would make such rules itself, by nftables' `queue`, which not every kernel has.
ours() { iptables --table mangle --append POSTROUTING "$@"; }
ours --match conntrack --ctstate ESTABLISHED,RELATED --jump ACCEPT
ours --match owner --uid-owner 0 --jump ACCEPT # the kubelet's probes
ours --source "$PODS" --jump NFQUEUE --queue-num 100
ours --destination "$PODS" --jump NFQUEUE --queue-num 100
# It knows only the way by which a pod finds the API.
mkdir -p /run/secrets/kubernetes.io
cp -r /etc/kubernetes/serviceaccount /run/secrets/kubernetes.io/
export KUBERNETES_SERVICE_HOST=${API%:*} KUBERNETES_SERVICE_PORT=${API#*:}
keep network-policies kube-network-policies --hostname-override "$NODE_NAME" \
  --metrics-bind-address 127.0.0.1:9080 --netfilter-bug-1766-fix=false --disable-nri
wait
