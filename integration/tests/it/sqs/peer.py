"""A publisher and a reader that are not ours. Usage: peer.py <endpoint> <region> <command> <queue's url>
<arguments>, JSON on stdout."""

import json
import sys

import boto3

ATTRIBUTES = {
    "text": {"DataType": "String", "StringValue": "a b"},
    "number": {"DataType": "Number", "StringValue": "5"},
    "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
}


def fill(sqs, url, good, poison):
    """Sends `good` messages and, behind them, `poison` more; gives the ids that SQS gave them."""
    bodies = ["fine"] * int(good) + ["poison"] * int(poison)
    ids = []
    for start in range(0, len(bodies), 10):
        batch = list(enumerate(bodies))[start:start + 10]
        entries = [entry(url, number, body) for number, body in batch]
        answer = sqs.send_message_batch(QueueUrl=url, Entries=entries)
        assert not answer.get("Failed"), answer
        ids += [sent["MessageId"] for sent in answer["Successful"]]
    return ids


def entry(url, number, body):
    """On a FIFO queue of one of three groups."""
    entry = {"Id": str(number), "MessageBody": body, "MessageAttributes": ATTRIBUTES}
    if url.endswith(".fifo"):
        entry["MessageGroupId"] = f"group-{number % 3}"
        entry["MessageDeduplicationId"] = f"deduplication-{number}"
    return entry


def take(sqs, url, count):
    """Takes so many messages out of a queue, with what is known of them."""
    taken = []
    while len(taken) < int(count):
        answer = sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=20,
            AttributeNames=["All"], MessageAttributeNames=["All"])
        for message in answer.get("Messages", []):
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            taken.append({
                "body": message["Body"],
                "system": message["Attributes"],
                "attributes": {name: shown(value) for name, value in message.get("MessageAttributes", {}).items()},
            })
    return taken


def send_back(sqs, url, target, count):
    """Moves so many messages to another queue, as a script of an operator does: with their attributes."""
    moved = 0
    while moved < int(count):
        answer = sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=20,
            AttributeNames=["All"], MessageAttributeNames=["All"])
        for message in answer.get("Messages", []):
            sqs.send_message(
                QueueUrl=target, MessageBody=message["Body"],
                MessageAttributes=message.get("MessageAttributes", {}))
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            moved += 1
    return moved


def shown(value):
    return value["StringValue"] if "StringValue" in value else value["BinaryValue"].hex()


def main():
    endpoint, region, command, url, *arguments = sys.argv[1:]
    sqs = boto3.client("sqs", endpoint_url=endpoint, region_name=region)
    print(json.dumps({"fill": fill, "take": take, "send_back": send_back}[command](sqs, url, *arguments)))


if __name__ == "__main__":
    main()
