# The types of the compiled half; `_pureload` is the specification.

from array import array

def run_load(
    protocol: int,
    ports: list[int],
    commands: list[bytes],
    sessions: int,
    messages: int,
    seconds: float,
    anew: bool,
    key_at: int,
    second_frame_at: int,
    stuck_s: float,
) -> tuple[array[int], array[int], float]: ...
