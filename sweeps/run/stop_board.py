"""Where workers ask whether their trial is to stop: a file of its own, whose process imports little."""


class StopBoard:
    """A small process on the driver's machine.

    Tune could only end the workers' processes: it does not wait for what they still have to write.
    """

    def __init__(self) -> None:
        self.stopped: set[str] = set()

    def stop(self, trial_id: str) -> None:
        self.stopped.add(trial_id)

    def is_stopped(self, trial_id: str) -> bool:
        return trial_id in self.stopped
