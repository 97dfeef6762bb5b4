"""Caption a split and score it: `python evaluate.py --ckpt best`."""

import sys


# All of it lies behind main(): run from here, this file hides Hugging Face's `evaluate` from whoever imports that.
def main() -> int:
    from blip_lite.config import ConfigError, EvalConfig, parse

    try:
        config = parse(EvalConfig)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from blip_lite.data import DataError
    from blip_lite.evaluation import evaluate, summary
    from blip_lite.pretrained import CheckpointError
    from blip_lite.sweep import sweep

    try:
        if config.sweep:
            sweep(config)
            return 0
        result = evaluate(config)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result:  # on the main process
        print(summary(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
