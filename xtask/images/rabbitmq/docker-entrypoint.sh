#!/bin/sh
# Starts the server as its own user. Debian's wrapper does that by `su`, which keeps SIGTERM to itself:
# `docker stop` would wait for its whole timeout and then kill.
set -e
if [ "$1" = rabbitmq-server ]; then
    shift
    export HOME=/var/lib/rabbitmq
    exec setpriv --reuid rabbitmq --regid rabbitmq --init-groups \
        /usr/lib/rabbitmq/bin/rabbitmq-server "$@"
fi
exec "$@"
