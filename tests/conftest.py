"""Before anything imports torch."""

from posttrain.runs.threads import spin_briefly

spin_briefly()
