"""A publisher and a reader that are not ours. Usage: peer.py <url> <command> <arguments>, JSON on stdout."""

import json
import sys

import pika

PERSISTENT = pika.spec.PERSISTENT_DELIVERY_MODE


def fill(channel, queue, good, poison):
    """Publishes `good` messages and, among them, `poison` more, each confirmed."""
    channel.confirm_delivery()
    every = max(1, good // max(1, poison))
    sent = 0
    for number in range(good):
        publish(channel, queue, f"good-{number}", "fine")
        if number % every == 0 and sent < poison:
            publish(channel, queue, f"poison-{sent}", "poison")
            sent += 1
    return {"good": good, "poison": sent}


def publish(channel, queue, message_id, body):
    properties = pika.BasicProperties(
        message_id=message_id,
        delivery_mode=PERSISTENT,
        headers={"text": "a b", "number": 5, "flag": True, "list": [1, "x"], "table": {"a": 1}},
    )
    channel.basic_publish("", queue, body.encode(), properties, mandatory=True)


def depth(channel, queue):
    return channel.queue_declare(queue, passive=True).method.message_count


def take(channel, queue):
    """Takes all messages of a queue, with what is known of them."""
    taken = []
    while True:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return taken
        taken.append({
            "id": properties.message_id,
            "headers": {name: str(value) for name, value in (properties.headers or {}).items()},
            "body": body.decode(),
            "persistent": properties.delivery_mode == PERSISTENT,
        })


def classic(channel, queue):
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "classic"})


def main():
    url, command, queue, *numbers = sys.argv[1:]
    commands = {"fill": fill, "depth": depth, "take": take, "classic": classic}
    connection = pika.BlockingConnection(pika.URLParameters(url))
    answer = commands[command](connection.channel(), queue, *map(int, numbers))
    connection.close()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
