"""From `python` to the first caption: seconds and peak memory, each side in a process of its own, in turn.

python benchmarks/startup.py [--size tiny]
"""

from __future__ import annotations

import subprocess
import sys
import time

from common import OURS, PEER, Results, arguments, checkpoint, compare, photographs

END = "; print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024 / 1e9)"
CODE = {
    OURS: "from blip_lite import Captioner; print(Captioner.from_pretrained({folder!r}, 'cpu')({photo!r}))",
    PEER: "from PIL import Image; from transformers import BlipForConditionalGeneration, BlipProcessor\n"
    "from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil\n"
    "from transformers import BertTokenizer\n"
    "processor = BlipProcessor(BlipImageProcessorPil.from_pretrained({folder!r}), BertTokenizer.from_pretrained({folder!r}))\n"
    "model = BlipForConditionalGeneration.from_pretrained({folder!r})\n"
    "pixels = processor.image_processor(Image.open({photo!r}), return_tensors='pt')['pixel_values']\n"
    "print(processor.batch_decode(model.generate(pixel_values=pixels, num_beams=5, max_new_tokens=30, early_stopping=True),"
    " skip_special_tokens=True)[0])",
}


def main() -> None:
    args = arguments(__doc__)
    if "--size" not in sys.argv:
        args.size = "tiny"
    results = Results("startup", args)
    folder, photo = str(checkpoint(args.size)), photographs(None, 1)[0]
    seconds: dict[str, list[float]] = {PEER: [], OURS: []}
    gigabytes, captions = {}, {}
    for i in range(args.repeats + 1):
        for side in (PEER, OURS) if i % 2 else (OURS, PEER):
            start = time.perf_counter()
            code = CODE[side].format(folder=folder, photo=photo) + END
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            if i:  # the first fills the disk's cache
                seconds[side].append(time.perf_counter() - start)
            *_, captions[side], memory = done.stdout.strip().splitlines()
            gigabytes[side] = float(memory)
    results.add(
        "import, load, first caption",
        "per s",
        **compare(seconds, 1.0),
        **{f"{side}_peak_GB": gb for side, gb in gigabytes.items()},
        same_caption=str(captions[OURS] == captions[PEER]),
    )


if __name__ == "__main__":
    main()
