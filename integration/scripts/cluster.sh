#!/bin/sh
# Runs a Redis Cluster in one container, a node for each port given: three masters and their replicas.
# The ports are the same inside and outside, so that 127.0.0.1 is the right address for the nodes and
# for their clients.
set -e
first=$1

for port in "$@"; do
    cat > /tmp/$port.conf <<CONF
port $port
protected-mode no
dir /tmp
pidfile /tmp/$port.pid
appendonly yes
appenddirname aof-$port
dbfilename dump-$port.rdb
save ""
cluster-enabled yes
cluster-config-file /tmp/$port.nodes
cluster-announce-ip 127.0.0.1
cluster-node-timeout 2000
cluster-replica-validity-factor 0
CONF
    redis-server /tmp/$port.conf &
done
trap 'kill $(cat /tmp/*.pid); wait; exit 0' TERM

each_says() {
    wanted=$1
    shift
    for port in $nodes; do
        redis-cli -p $port "$@" | grep -q "$wanted" || return 1
    done
}

nodes=$*
until each_says PONG ping; do sleep 0.1; done
# A container that starts again finds the cluster made.
if [ ! -e /tmp/created ]; then
    redis-cli --cluster create $(printf '127.0.0.1:%s ' "$@") --cluster-replicas 1 --cluster-yes
    touch /tmp/created
fi
until each_says cluster_state:ok cluster info; do sleep 0.1; done
# Every node has to know every replica, and every replica to have its master's data.
until each_says 'master_link_status:up\|role:master' info replication; do sleep 0.1; done
for port in $nodes; do
    until [ "$(redis-cli -p $port cluster nodes | grep -c ' slave \|,slave ')" = 3 ]; do sleep 0.1; done
done
echo "the cluster is up"

# A trap runs between commands, hence short ones. `wait` also buries nodes that were killed.
while :; do
    sleep 1 &
    wait $!
done
