"""Before anything imports torch."""

from posttrain.runs.threads import sleep_while_waiting

sleep_while_waiting()
