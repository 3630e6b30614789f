#!/bin/sh
# Runs a Redis master, its replica and three sentinels in one container: master, replica, sentinels.
# The ports are the same inside and outside, so that 127.0.0.1 is the right address for all of them
# and for their clients.
set -e
master=$1
replica=$2
shift 2

for port in $master $replica; do
    # A container that starts again keeps what the sentinels changed.
    [ -e /tmp/$port.conf ] || cat > /tmp/$port.conf <<CONF
port $port
protected-mode no
dir /tmp
pidfile /tmp/$port.pid
appendonly yes
appenddirname aof-$port
dbfilename dump-$port.rdb
save ""
repl-diskless-sync-delay 0
CONF
done
if [ ! -e /tmp/created ]; then
    echo "replicaof 127.0.0.1 $master" >> /tmp/$replica.conf
    for port in "$@"; do
        cat > /tmp/$port.conf <<CONF
port $port
protected-mode no
dir /tmp
pidfile /tmp/$port.pid
sentinel monitor main 127.0.0.1 $master 2
sentinel down-after-milliseconds main 2000
sentinel failover-timeout main 6000
CONF
    done
    touch /tmp/created
fi

redis-server /tmp/$master.conf &
redis-server /tmp/$replica.conf &
until redis-cli -p $replica info replication | grep -q 'master_link_status:up\|connected_slaves:1'; do
    sleep 0.1
done
for port in "$@"; do
    redis-server /tmp/$port.conf --sentinel &
done
trap 'kill $(cat /tmp/*.pid); wait; exit 0' TERM

# Each sentinel has to know the others and the replica: before that it cannot fail over.
for port in "$@"; do
    until redis-cli -p $port info sentinel | grep -q 'status=ok.*slaves=1,sentinels=3'; do sleep 0.1; done
done
echo "the sentinels are up"

# A trap runs between commands, hence short ones. `wait` also buries nodes that were killed.
while :; do
    sleep 1 &
    wait $!
done
