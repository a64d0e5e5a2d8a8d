"""Calling something from several threads at once. No tests here."""

import threading

import torch


def differences(call, inputs, expected, times=10):
    """How often call(x), in a thread of its own for each x, was not what is expected."""
    wrong = []

    def work(x, right):
        wrong.extend(1 for _ in range(times) if not torch.equal(call(x), right))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)
