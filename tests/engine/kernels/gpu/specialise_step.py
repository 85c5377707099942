"""Count the binaries of the draw and of each step kernel on a GPU, for steps of 1 to 9 rows."""

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker import step_program
from stretto.engine.worker.step_program import Variant
from tests.engine.kernels.gpu.specialise import Launches, num_binaries_of_the_draw
from tests.engine.worker.walks import LENGTH, captured
from tests.small_vocabularies import BAGPIPER

KERNELS = ("attempt_keys_kernel", "text_maxima_kernel", "draw_text_kernel", "draw_streams_kernel", "advance_kernel")

if __name__ == "__main__":
    print("_draw_kernel", num_binaries_of_the_draw())
    launches = {name: Launches(getattr(step_program, name)) for name in KERNELS}
    for name, stub in launches.items():
        setattr(step_program, name, stub)
    program = captured(SegmentRules(BAGPIPER, LENGTH), 9).sampler._program
    for num_rows in range(1, 10):
        program.launch(Variant(True, True), num_rows)
    for name, stub in launches.items():
        print(name, len(stub.chosen_by))
